// What the checksum of a message costs, beside what is done with the message anyway.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>

#include "common/base/crc32c.h"
#include "common/net/checksum.h"
#include "proto/moe/v1/expert.pb.h"

namespace moe {
namespace {

// A forward message of kjv-moe: 4 replicas, each with `rows` rows of 512 floats, 16 groups.
v1::ExchangeRequest Forward(int64_t rows) {
  v1::ExchangeRequest request;
  request.set_generation(1);
  request.mutable_forward()->mutable_id()->set_step(1000);
  for (uint32_t r = 0; r < 4; ++r) {
    v1::ForwardFrame& frame = *request.mutable_forward()->add_frames();
    frame.set_replica(r);
    frame.set_token(std::string(rows * sizeof(uint32_t), 't'));
    frame.set_x(std::string(rows * 512 * sizeof(float), 'x'));
    for (uint32_t g = 0; g < 16; ++g) {
      v1::GroupRouting& group = *frame.add_groups();
      group.set_group(g);
      group.set_row(std::string(rows, 'r'));
      group.set_expert(std::string(rows, 'e'));
      group.set_gate(std::string(rows, 'g'));
      for (int e = 0; e < 2; ++e) {
        group.add_importance(0.5);
        group.add_load(0.5);
      }
    }
  }
  return request;
}

void BM_Crc32c(benchmark::State& state) {
  const std::string bytes(state.range(0), 'x');
  for (auto _ : state) benchmark::DoNotOptimize(Crc32c(bytes));
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Crc32c)->Arg(64)->Arg(4 << 10)->Arg(256 << 10)->Arg(4 << 20);

void BM_Seal(benchmark::State& state) {
  v1::ExchangeRequest request = Forward(state.range(0));
  for (auto _ : state) Seal(&request);
  state.SetBytesProcessed(state.iterations() * request.ByteSizeLong());
}
BENCHMARK(BM_Seal)->Arg(16)->Arg(128)->Arg(512);

// For comparison: what gRPC has protobuf do with it, once at each end.
void BM_Serialize(benchmark::State& state) {
  const v1::ExchangeRequest request = Forward(state.range(0));
  std::string bytes;
  for (auto _ : state) request.SerializeToString(&bytes);
  state.SetBytesProcessed(state.iterations() * bytes.size());
}
BENCHMARK(BM_Serialize)->Arg(16)->Arg(128)->Arg(512);

void BM_Parse(benchmark::State& state) {
  const std::string bytes = Forward(state.range(0)).SerializeAsString();
  v1::ExchangeRequest request;
  for (auto _ : state) benchmark::DoNotOptimize(request.ParseFromString(bytes));
  state.SetBytesProcessed(state.iterations() * bytes.size());
}
BENCHMARK(BM_Parse)->Arg(16)->Arg(128)->Arg(512);

}  // namespace
}  // namespace moe
