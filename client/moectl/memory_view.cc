#include "client/moectl/memory_view.h"

#include <cstdint>
#include <vector>

#include "common/base/human.h"

namespace moe {
namespace {

constexpr auto kRight = TextTable::Align::kRight;

std::string Bytes(int64_t count) {
  return count == 0 ? "-" : FormatBytes(static_cast<uint64_t>(count));
}

}  // namespace

MemoryTable::MemoryTable()
    : table_(std::vector<TextTable::Column>{{"MEMORY"},
                                            {"PARAMETERS", kRight},
                                            {"OPTIMIZER", kRight},
                                            {"GRADIENTS", kRight},
                                            {"ACTIVATIONS", kRight},
                                            {"MESSAGES", kRight},
                                            {"COPIES", kRight},
                                            {"PROGRAM", kRight},
                                            {"TOTAL", kRight}}) {}

void MemoryTable::Add(const std::string& title, const MemoryNeed& need) {
  table_.AddRow({title, Bytes(need.parameters), Bytes(need.optimizer),
                 Bytes(need.gradients), Bytes(need.activations), Bytes(need.messages),
                 Bytes(need.copies), Bytes(need.program), Bytes(need.total())});
}

Json MemoryToJson(const MemoryNeed& need) {
  return {{"program", need.program},         {"parameters", need.parameters},
          {"optimizer", need.optimizer},     {"gradients", need.gradients},
          {"activations", need.activations}, {"messages", need.messages},
          {"copies", need.copies},           {"total", need.total()}};
}

}  // namespace moe
