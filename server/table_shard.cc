#include "server/table_shard.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/log_sum.h"
#include "common/base/protocol.h"
#include "common/base/status_macros.h"
#include "common/io/sha256.h"
#include "common/tensor/bytes.h"
#include "glog/logging.h"
#include "server/shard_file.h"

namespace moe {
namespace {

// Rows that are scored, digested or filled with initial values at a time.
constexpr int64_t kRowBlock = kScoreBlockRows;
// Rows of a piece: few, since one that is touched moves them all.
constexpr int64_t kPieceRows = 64;
// Bytes of rows that are copied together for a cut, where a row has fewer: a note of each copy takes
// memory, too.
constexpr int64_t kCopiedTogether = 4096;

std::vector<float> Downloaded(const Tensor& tensor) {
  std::vector<float> host(tensor.size());
  tensor.Download(host);
  return host;
}

// Calls fn(begin, count) for blocks of rows in order.
template <typename Fn>
void ForRowBlocks(int64_t rows, const Fn& fn) {
  for (int64_t begin = 0; begin < rows; begin += kRowBlock) {
    fn(begin, std::min(kRowBlock, rows - begin));
  }
}

}  // namespace

TableShard::TableShard(Backend& backend, const ModelPlan& plan, const ShardSpec& spec,
                       const v1::Job& job)
    : backend_(backend),
      spec_(spec),
      seed_(job.seed()),
      optimizer_(job.optimizer()),
      replicas_(job.training().replicas()),
      count_(spec.rows) {
  for (const int64_t t : spec.tensors) {
    Part part;
    part.tensor = plan.tensors[t];
    part.state = StateOf(optimizer_, part.tensor);
    part.w = Tensor(backend, part.tensor.rows, part.tensor.cols);
    if (part.state.m > 0) part.m = Tensor(backend, spec.rows, part.tensor.cols);
    if (part.state.v > 0) part.v = Tensor(backend, spec.rows, part.state.v / spec.rows);
    parts_.push_back(std::move(part));
  }
  tree_.emplace(replicas_);
}

int64_t TableShard::columns() const {
  int64_t columns = 0;
  for (const Part& part : parts_) columns += part.tensor.cols;
  return columns;
}

void TableShard::CountPulled(int64_t rows, bool evaluation) {
  (evaluation ? evaluation_rows_pulled_ : rows_pulled_) += rows;
}

std::string TableShard::Content(std::span<const int32_t> index) const {
  const auto rows = static_cast<int64_t>(index.size());
  const int64_t width = columns();
  std::string content(rows * width * sizeof(float), '\0');
  int64_t begin = 0;
  for (const Part& part : parts_) {
    const int64_t cols = part.tensor.cols;
    const Tensor gathered(backend_, rows, cols);
    backend_.GatherRows(part.w.view(), index, /*scale=*/nullptr, gathered.view());
    const std::vector<float> host = Downloaded(gathered);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(content.data() + (r * width + begin) * sizeof(float),
                  host.data() + r * cols, cols * sizeof(float));
    }
    begin += cols;
  }
  return content;
}

v1::ShardScore TableShard::Score(ConstMatrix x, std::span<const int32_t> target) const {
  CHECK(spec_.table == Table::kSoftmax) << spec_.id;
  const ConstMatrix w = parts_[0].w.view();
  const float* b = parts_[1].w.data();
  const int64_t tokens = x.rows;
  std::vector<LogSum> sums(tokens);
  const Tensor logits(backend_, tokens, std::min(kRowBlock, spec_.rows));
  std::vector<float> block_largest(tokens);
  std::vector<double> block_sum(tokens);
  ForRowBlocks(spec_.rows, [&](int64_t begin, int64_t count) {
    const Matrix block(logits.data(), tokens, count);
    backend_.BroadcastRow(b + begin, block);
    backend_.Gemm(Transpose::kNo, Transpose::kYes, 1, x, w.Rows(begin, count), 1, block);
    backend_.LogSumExp(block, block_largest.data(), block_sum.data());
    for (int64_t t = 0; t < tokens; ++t) sums[t].Add(block_largest[t], block_sum[t]);
  });

  std::vector<int32_t> row(tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t local = target[t] - spec_.first_row;
    row[t] = local >= 0 && local < spec_.rows ? static_cast<int32_t>(local) : -1;
  }
  const std::vector<int32_t> no_hit(tokens, -1);
  const Tensor target_logit(backend_, tokens, 1);
  backend_.TargetLogits(x, w, b, row, no_hit, target_logit.view());

  std::vector<float> largest;
  std::vector<double> sum;
  for (const LogSum& of_token : sums) {
    largest.push_back(static_cast<float>(of_token.largest));
    sum.push_back(of_token.sum);
  }
  v1::ShardScore score;
  score.set_shard(spec_.id);
  PutArray(largest, score.mutable_largest());
  PutArray(sum, score.mutable_sum());
  PutArray(Downloaded(target_logit), score.mutable_target());
  return score;
}

absl::Status TableShard::AddGradient(TreeNode node, SparseRows gradient) {
  return tree_->Add(node, std::move(gradient));
}

const TableShard::Gradient& TableShard::StepGradient() {
  if (gradient_.has_value()) return *gradient_;
  const SparseRows sum = tree_->TakeRoot();
  gradient_.emplace();
  gradient_->row.assign(sum.row.begin(), sum.row.end());
  const auto rows = static_cast<int64_t>(sum.row.size());
  const int64_t width = columns();
  int64_t begin = 0;
  for (const Part& part : parts_) {
    const int64_t cols = part.tensor.cols;
    std::vector<float> host(rows * cols);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(sum.value.begin() + r * width + begin, cols, host.begin() + r * cols);
    }
    gradient_->of_part.emplace_back(backend_, rows, cols).Upload(host);
    begin += cols;
  }
  return *gradient_;
}

void TableShard::AppendSquareSums(std::vector<v1::TensorSquareSum>* sums) {
  const Gradient& gradient = StepGradient();
  for (size_t i = 0; i < parts_.size(); ++i) {
    v1::TensorSquareSum& sum = sums->emplace_back();
    sum.set_tensor(parts_[i].tensor.index);
    const Tensor& of_part = gradient.of_part[i];
    sum.set_sum(backend_.SquareSum(of_part.size(), of_part.data()));
  }
}

void TableShard::Keep(std::span<const int32_t> rows) const {
  const std::shared_ptr<ShardCut> cut = cut_.lock();
  if (cut == nullptr) return;
  for (size_t e = 0; e < cut_row_bytes_.size(); ++e) {
    const int64_t bytes = cut_row_bytes_[e];
    for (const int32_t row : rows) cut->Keep(e, row * bytes, (row + 1) * bytes);
  }
}

void TableShard::Apply(double rate, double scale) {
  const Gradient& gradient = StepGradient();
  Keep(gradient.row);
  std::vector<int64_t> count;
  for (const int32_t row : gradient.row) {
    count.push_back(++count_[row]);
    rows_touched_ += count_[row] == 1;
  }
  for (size_t i = 0; i < parts_.size(); ++i) {
    Part& part = parts_[i];
    backend_.UpdateRows(StepOf(part.state, rate, scale), gradient.row, count,
                        gradient.of_part[i].view(), part.w.view(), part.m.view(),
                        part.v.view());
  }
  rows_pushed_ += gradient.row.size();
  gradient_.reset();
  tree_.emplace(replicas_);
}

void TableShard::Initialize() {
  for (Part& part : parts_) {
    const int64_t cols = part.tensor.cols;
    std::vector<float> block(std::min(kRowBlock, spec_.rows) * cols);
    ForRowBlocks(spec_.rows, [&](int64_t begin, int64_t count) {
      FillInitialRows(seed_, part.tensor, begin, count, block.data());
      backend_.Upload(block.data(), part.w.view().row(begin),
                      count * cols * sizeof(float));
    });
    part.m.Zero();
    part.v.Zero();
  }
  std::fill(count_.begin(), count_.end(), 0);
  rows_touched_ = 0;
}

std::vector<TableShard::Entry> TableShard::Entries() const {
  std::vector<Entry> entries;
  for (const Part& part : parts_) {
    const bool by_rows = part.state.second_moment == SecondMoment::kPerRow;
    const std::string& name = part.tensor.name;
    entries.push_back({name, &part.w, &part.tensor});
    if (part.m.size() > 0) entries.push_back({name + "#m", &part.m});
    if (part.v.size() == 0) continue;
    entries.push_back({name + (by_rows ? "#v.rows" : "#v"), &part.v});
  }
  return entries;
}

absl::Status TableShard::Restore(const SafetensorsFile& file) {
  const std::vector<Entry> entries = Entries();
  std::map<std::string, char*> to;
  for (const auto& [name, tensor, unused] : entries) {
    RETURN_IF_ERROR(
        FindEntry(file, name, "F32", {tensor->rows(), tensor->cols()}).status());
    to[name] = reinterpret_cast<char*>(tensor->data());
  }
  ASSIGN_OR_RETURN(const SafetensorsEntry counts,
                   FindEntry(file, spec_.id + "#count", "I64", {spec_.rows}));
  if (file.entries().size() != entries.size() + 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(file.path(), ": has ", file.entries().size(), " entries instead of ",
                     entries.size() + 1, "; is it of the same job?"));
  }
  RETURN_IF_ERROR(file.ReadAll(
      [&](const SafetensorsEntry& entry, size_t begin, std::string_view bytes) {
        if (entry.name == counts.name) {
          bytes.copy(reinterpret_cast<char*>(count_.data()) + begin, bytes.size());
        } else {
          backend_.Upload(bytes.data(), to.at(entry.name) + begin, bytes.size());
        }
      }));
  rows_touched_ = 0;
  for (const int64_t count : count_) {
    if (count < 0) {
      return absl::DataLossError(
          absl::StrCat(file.path(), ": a row has ", count, " updates"));
    }
    rows_touched_ += count > 0;
  }
  return absl::OkStatus();
}

std::shared_ptr<ShardCut> TableShard::BeginCut(CopyBudget& copies) {
  std::vector<ShardCut::Entry> entries;
  cut_row_bytes_.clear();
  const auto add = [&](ShardCut::Entry entry, int64_t row_bytes) {
    entry.bytes = spec_.rows * row_bytes;
    entry.unit = std::max(kCopiedTogether / row_bytes, int64_t{1}) * row_bytes;
    entries.push_back(std::move(entry));
    cut_row_bytes_.push_back(row_bytes);
  };
  for (const auto& [name, tensor, parameters] : Entries()) {
    ShardCut::Entry entry = {name, "F32", {tensor->rows(), tensor->cols()}};
    entry.data = tensor->data();
    entry.parameters = parameters;
    add(std::move(entry), tensor->cols() * static_cast<int64_t>(sizeof(float)));
  }
  ShardCut::Entry counts = {spec_.id + "#count", "I64", {spec_.rows}};
  counts.data = count_.data();
  counts.on_host = true;
  add(std::move(counts), sizeof(int64_t));
  auto cut = std::make_shared<ShardCut>(backend_, copies, spec_.id, std::move(entries));
  cut_ = cut;
  return cut;
}

std::vector<v1::TensorDigest> TableShard::Digests() const {
  std::vector<v1::TensorDigest> digests;
  for (const Part& part : parts_) {
    const int64_t cols = part.tensor.cols;
    std::vector<float> block(std::min(kRowBlock, spec_.rows) * cols);
    Sha256 sha;
    ForRowBlocks(spec_.rows, [&](int64_t begin, int64_t count) {
      const size_t bytes = count * cols * sizeof(float);
      backend_.Download(part.w.view().row(begin), block.data(), bytes);
      sha.Update(block.data(), bytes);
    });
    digests.push_back(MakeTensorDigest(part.tensor, sha));
  }
  return digests;
}

void TableShard::FillStatus(v1::ShardStatus* status) const {
  status->set_shard(spec_.id);
  for (const Part& part : parts_) {
    status->set_parameter_bytes(status->parameter_bytes() + part.state.parameter_bytes);
    status->set_optimizer_bytes(status->optimizer_bytes() + part.state.optimizer_bytes());
  }
  status->set_rows_pulled(rows_pulled_);
  status->set_evaluation_rows_pulled(evaluation_rows_pulled_);
  status->set_rows_pushed(rows_pushed_);
  status->set_rows_touched(rows_touched_);
}

TableShard::Block TableShard::BlockOf(int64_t piece) const {
  const int64_t begin = piece * kPieceRows;
  return {begin, std::min(kPieceRows, spec_.rows - begin)};
}

template <typename Fn>
void TableShard::ForSlices(Block block, const Fn& fn) const {
  for (const Part& part : parts_) {
    for (const Tensor* tensor : {&part.w, &part.m, &part.v}) {
      if (tensor->size() == 0) continue;
      fn(tensor->view().row(block.begin), block.rows * tensor->cols() * sizeof(float));
    }
  }
}

size_t TableShard::PieceBytes(Block block) const {
  size_t bytes = block.rows * sizeof(int64_t);
  ForSlices(block, [&](float*, size_t slice) { bytes += slice; });
  return bytes;
}

int64_t TableShard::pieces() const { return (spec_.rows + kPieceRows - 1) / kPieceRows; }

uint64_t TableShard::PieceVersion(int64_t piece) const {
  const Block block = BlockOf(piece);
  const auto begin = count_.begin() + block.begin;
  return std::accumulate(begin, begin + block.rows, uint64_t{0});
}

std::string TableShard::Piece(int64_t piece) const {
  const Block block = BlockOf(piece);
  std::string content(PieceBytes(block), '\0');
  const size_t counts = block.rows * sizeof(int64_t);
  std::memcpy(content.data(), count_.data() + block.begin, counts);
  char* end = content.data() + counts;
  ForSlices(block, [&](const float* begin, size_t bytes) {
    backend_.Download(begin, end, bytes);
    end += bytes;
  });
  return content;
}

absl::Status TableShard::SetPiece(int64_t piece, uint64_t /*version*/,
                                  std::string_view content) {
  const Block block = BlockOf(piece);
  if (content.size() != PieceBytes(block)) {
    return WrongPiece(spec_, piece, content.size(), PieceBytes(block));
  }
  const auto touched = [&] {
    const auto begin = count_.begin() + block.begin;
    return block.rows - std::count(begin, begin + block.rows, 0);
  };
  rows_touched_ -= touched();
  const size_t counts = block.rows * sizeof(int64_t);
  std::memcpy(count_.data() + block.begin, content.data(), counts);
  rows_touched_ += touched();
  const char* next = content.data() + counts;
  ForSlices(block, [&](float* begin, size_t bytes) {
    backend_.Upload(next, begin, bytes);
    next += bytes;
  });
  return absl::OkStatus();
}

}  // namespace moe
