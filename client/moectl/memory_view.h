// The memory that members need, for people and for scripts.
#pragma once

#include <string>

#include "client/moectl/json.h"
#include "client/moectl/text_table.h"
#include "common/job/step_memory.h"

namespace moe {

// A row for each need.
class MemoryTable {
 public:
  MemoryTable();
  void Add(const std::string& title, const MemoryNeed& need);
  std::string ToString() const { return table_.ToString(); }

 private:
  TextTable table_;
};

// Bytes by kind, and their total.
Json MemoryToJson(const MemoryNeed& need);

}  // namespace moe
