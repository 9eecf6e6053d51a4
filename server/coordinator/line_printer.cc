#include "server/coordinator/line_printer.h"

#include <utility>

namespace moe {
namespace {

constexpr size_t kMaxLines = 10000;

}  // namespace

LinePrinter::LinePrinter(std::ostream* out) : out_(out) {
  if (out_ != nullptr) thread_ = std::thread([this] { Run(); });
}

LinePrinter::~LinePrinter() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void LinePrinter::Print(const std::string& line) {
  absl::MutexLock lock(&mutex_);
  if (out_ != nullptr && lines_.size() < kMaxLines) lines_.push_back(line);
}

void LinePrinter::Run() {
  while (true) {
    std::deque<std::string> lines;
    {
      const auto wake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || !lines_.empty();
      };
      absl::MutexLock lock(&mutex_, absl::Condition(&wake));
      if (lines_.empty()) return;
      lines = std::exchange(lines_, {});
    }
    for (const std::string& line : lines) *out_ << line << "\n";
    out_->flush();
  }
}

}  // namespace moe
