#include "common/job/cost_model.h"

#include <algorithm>
#include <map>
#include <utility>

#include "common/job/mixtures.h"
#include "common/job/step_work.h"
#include "common/tensor/replica_tree.h"

namespace moe {
namespace {

// Bytes on an Ethernet for each of a stream: packets of 1,500 bytes with their headers and gaps.
constexpr double kOnWire = 1538.0 / 1448.0;
// What a message costs its sender, and its receiver, beside its bytes: calls of the kernel, and
// threads that wake each other.
constexpr double kPerMessage = 60e-6;
// The coordinator's answer to a report of a step, beside latency.
constexpr double kReport = 300e-6;
// Of packing, or unpacking, what the thread does that computes; the rest is done by gRPC's threads.
constexpr double kOwnShare = 0.5;
// Messages to or from several hosts are on their way while others are packed; more pieces than these
// make no difference.
constexpr int kMostPieces = 4;

// Who sends how much.
struct Transfer {
  double worker_bytes = 0;  // of the worker that has most of it
  double server_bytes = 0;  // of the server

  void Cover(const Transfer& other) {
    worker_bytes = std::max(worker_bytes, other.worker_bytes);
    server_bytes = std::max(server_bytes, other.server_bytes);
  }
};

const Effort& Larger(const Effort& a, const Effort& b) {
  return a.total() < b.total() ? b : a;
}

// What each phase of a step takes of the members that have most of it.
struct Phases {
  struct Call {
    Transfer forward, forward_reply, backward, backward_reply;
    Effort forward_work, backward_work;
  };
  std::vector<Call> calls;  // by mixture
  Transfer requests, parameters, rows, closes, answers;
  Effort join, square_sums, apply;
  std::vector<WorkerWork::Segment> segments;
  Effort begin, close;
};

// Plays a step through.
class Play {
 public:
  Play(const v1::Job& job, const ClusterSpeed& speed, const Phases& phases, int servers,
       int workers)
      : speed_(speed),
        phases_(phases),
        servers_(servers),
        workers_(workers),
        waves_(job.training().waves()),
        timeline_(kResources) {}

  // Of a mixture's exchanges: its place among the mixtures. repeats: of that many exchanges each
  // backward pass asks again, before the one of this exchange.
  struct Exchange {
    int mixture = 0;
    int repeats = 0;
    Effort repeat;
  };

  CauseTimes Run(std::span<const Exchange> exchanges, bool clips, bool tables) {
    Pull(phases_.parameters);
    if (tables) Pull(phases_.rows);
    Compute(phases_.begin);
    Forward(exchanges);
    Backward(exchanges);
    Close(clips);
    timeline_.Run();
    return timeline_.Path(trainer_);
  }

 private:
  using Piece = StepTimeline::Piece;
  enum : StepTimeline::Resource {
    kWorkerCpu,
    kServerCpu,
    kUp,
    kDown,
    kWorkerIo,
    kServerIo,
    kResources
  };

  // With one thread a member has nothing beside it.
  StepTimeline::Resource worker_io() const {
    return speed_.threads == 1 ? kWorkerCpu : kWorkerIo;
  }
  StepTimeline::Resource server_io() const {
    return speed_.threads == 1 ? kServerCpu : kServerIo;
  }
  static CauseTimes Of(Cause cause, double seconds) {
    CauseTimes times;
    times[cause] = seconds;
    return times;
  }
  static CauseTimes OfWorker(const Effort& effort) {
    CauseTimes times = Of(Cause::kWorkerArithmetic, effort.arithmetic);
    times[Cause::kWorkerMemory] = effort.memory;
    return times;
  }
  static CauseTimes OfServer(const Effort& effort) {
    CauseTimes times = Of(Cause::kServerArithmetic, effort.arithmetic);
    times[Cause::kServerMemory] = effort.memory;
    return times;
  }
  double WorkerMessages(const Transfer& transfer) const {
    return transfer.worker_bytes / speed_.worker.messages + servers_ * kPerMessage;
  }
  double ServerMessages(const Transfer& transfer) const {
    return transfer.server_bytes / speed_.server.messages + workers_ * kPerMessage;
  }
  double Wire(const Transfer& transfer) const {
    return kOnWire * std::max(transfer.worker_bytes / speed_.worker.nic,
                              transfer.server_bytes / speed_.server.nic);
  }

  void Compute(const Effort& effort) {
    trainer_ = timeline_.Add(kWorkerCpu, OfWorker(effort), {trainer_});
  }

  // From all workers to all servers, packed by the trainer's thread after what it did last: what the
  // servers have then.
  Piece Send(const Transfer& transfer) {
    const int pieces = std::min(servers_, kMostPieces);
    const double part = 1.0 / pieces;
    const double messages = WorkerMessages(transfer) * part;
    Piece last = -1;
    for (int i = 0; i < pieces; ++i) {
      trainer_ = timeline_.Add(
          kWorkerCpu, Of(Cause::kWorkerMessages, kOwnShare * messages), {trainer_});
      Piece at = timeline_.Add(worker_io(),
                               Of(Cause::kWorkerMessages, (1 - kOwnShare) * messages),
                               {trainer_});
      at = timeline_.Add(kUp, Of(Cause::kNetwork, Wire(transfer) * part), {at});
      at = timeline_.Add(StepTimeline::kNone, Of(Cause::kLatency, speed_.latency), {at});
      last = timeline_.Add(server_io(),
                           Of(Cause::kServerMessages, ServerMessages(transfer) * part),
                           {at, last});
    }
    return last;
  }
  // The servers work, once they have what they wait for, and answer: what the workers have of it then.
  Piece Answer(Piece received, const Effort& work, const Transfer& transfer) {
    const int pieces = std::min(workers_, kMostPieces);
    const double part = 1.0 / pieces;
    const double messages = ServerMessages(transfer);
    CauseTimes times = OfServer(work);
    times[Cause::kServerMessages] += kOwnShare * messages;
    engine_ = timeline_.Add(kServerCpu, times, {received, engine_});
    Piece last = -1;
    for (int i = 0; i < pieces; ++i) {
      Piece at = timeline_.Add(
          server_io(), Of(Cause::kServerMessages, (1 - kOwnShare) * messages * part),
          {engine_});
      at = timeline_.Add(kDown, Of(Cause::kNetwork, Wire(transfer) * part), {at});
      at = timeline_.Add(StepTimeline::kNone, Of(Cause::kLatency, speed_.latency), {at});
      last = timeline_.Add(
          worker_io(),
          Of(Cause::kWorkerMessages, (1 - kOwnShare) * WorkerMessages(transfer) * part),
          {at, last});
    }
    return last;
  }
  // The trainer's thread waits for it and takes it.
  void Take(Piece answer, const Transfer& transfer) {
    trainer_ = timeline_.Add(
        kWorkerCpu, Of(Cause::kWorkerMessages, kOwnShare * WorkerMessages(transfer)),
        {trainer_, answer});
  }

  void Pull(const Transfer& content) {
    const Piece asked = Send(phases_.requests);
    Take(Answer(asked, {}, content), content);
  }

  void Forward(std::span<const Exchange> exchanges) {
    std::vector<std::vector<Piece>> answers(exchanges.size());
    for (size_t segment = 0; segment < phases_.segments.size(); ++segment) {
      for (int wave = 0; wave < waves_; ++wave) {
        if (segment > 0) {
          Take(answers[segment - 1][wave], CallOf(exchanges[segment - 1]).forward_reply);
        }
        Compute(phases_.segments[segment].forward);
        if (segment == exchanges.size()) continue;
        const Phases::Call& call = CallOf(exchanges[segment]);
        const Piece frames = Send(call.forward);
        answers[segment].push_back(Answer(frames, call.forward_work, call.forward_reply));
      }
    }
  }

  void Backward(std::span<const Exchange> exchanges) {
    std::vector<std::vector<Piece>> answers(exchanges.size());
    for (size_t segment = exchanges.size() + 1; segment-- > 0;) {
      for (int wave = 0; wave < waves_; ++wave) {
        if (segment < exchanges.size()) {
          Take(answers[segment][wave], CallOf(exchanges[segment]).backward_reply);
        }
        if (segment > 0) Repeat(exchanges[segment - 1]);
        Compute(phases_.segments[segment].backward);
        if (segment == 0) continue;
        const Phases::Call& call = CallOf(exchanges[segment - 1]);
        const Piece frames = Send(call.backward);
        answers[segment - 1].push_back(
            Answer(frames, call.backward_work, call.backward_reply));
      }
    }
  }

  // The next answer is on its way while the model works on one.
  void Repeat(const Exchange& exchange) {
    const Transfer& reply = CallOf(exchange).forward_reply;
    const auto ask = [&] { return Answer(Send({}), {}, reply); };
    Piece answer = exchange.repeats > 0 ? ask() : -1;
    for (int i = 0; i < exchange.repeats; ++i) {
      const Piece next = i + 1 < exchange.repeats ? ask() : -1;
      Take(answer, reply);
      Compute(exchange.repeat);
      answer = next;
    }
  }

  void Close(bool clips) {
    Compute(phases_.close);
    const Piece closes = Send(phases_.closes);
    if (clips) {
      const Piece sums =
          Answer(closes, phases_.join + phases_.square_sums, phases_.answers);
      Take(sums, phases_.answers);
      Take(Answer(Send({}), phases_.apply, {}), {});
    } else {
      Take(Answer(closes, phases_.join + phases_.apply, phases_.answers),
           phases_.answers);
    }
    CauseTimes report = Of(Cause::kLatency, 2 * speed_.latency);
    report[Cause::kWorkerMessages] = kReport;
    trainer_ = timeline_.Add(StepTimeline::kNone, report, {trainer_});
  }

  const Phases::Call& CallOf(const Exchange& exchange) const {
    return phases_.calls[exchange.mixture];
  }

  const ClusterSpeed& speed_;
  const Phases& phases_;
  const int servers_;
  const int workers_;
  const int waves_;
  StepTimeline timeline_;
  // What the thread of each did last.
  Piece trainer_ = -1;
  Piece engine_ = -1;
};

// Bytes of a mixture's calls: between servers, by how many of its groups they have, and workers.
class CallTransfers {
 public:
  CallTransfers(const StepTraffic& traffic, const Mixture& mixture,
                std::span<const std::vector<uint32_t>> workers)
      : traffic_(traffic),
        mixture_(mixture),
        workers_(workers),
        of_worker_(workers.size()) {}

  void AddServer(int32_t groups, Phases::Call* call) {
    auto [found, first] = of_server_.try_emplace(groups);
    if (first) {
      for (const std::vector<uint32_t>& owned : workers_) {
        found->second.push_back(traffic_.Call(mixture_, groups, owned));
      }
    }
    CallBytes all;
    for (size_t w = 0; w < workers_.size(); ++w) {
      all += found->second[w];
      of_worker_[w] += found->second[w];
    }
    call->forward.Cover({0, all.forward});
    call->forward_reply.Cover({0, all.forward_reply});
    call->backward.Cover({0, all.backward});
    call->backward_reply.Cover({0, all.backward_reply});
  }
  void CoverWorkers(Phases::Call* call) const {
    for (const CallBytes& all : of_worker_) {
      call->forward.Cover({all.forward, 0});
      call->forward_reply.Cover({all.forward_reply, 0});
      call->backward.Cover({all.backward, 0});
      call->backward_reply.Cover({all.backward_reply, 0});
    }
  }

 private:
  const StepTraffic& traffic_;
  const Mixture& mixture_;
  std::span<const std::vector<uint32_t>> workers_;
  std::map<int32_t, std::vector<CallBytes>> of_server_;  // by groups; [workers]
  std::vector<CallBytes> of_worker_;
};

double NetworkSeconds(const StepBytes& bytes, const HostSpeed& speed) {
  return kOnWire * std::max(bytes.to_servers(), bytes.to_workers()) / speed.nic;
}
double MessageSeconds(const StepBytes& bytes, const HostSpeed& speed) {
  return (bytes.to_servers() + bytes.to_workers()) / speed.messages;
}

}  // namespace

StepCost ComputeStepCost(const v1::Job& job, const ModelPlan& plan,
                         std::span<const std::vector<ShardSpec>> servers,
                         std::span<const std::vector<uint32_t>> workers,
                         const ClusterSpeed& speed, int64_t activation_bytes) {
  const v1::Training& training = job.training();
  const StepTraffic traffic(job, plan);
  const std::vector<Mixture>& mixtures = traffic.mixtures();
  StepCost cost;
  cost.tokens =
      static_cast<double>(training.replicas()) * training.lanes() * training.unroll();
  cost.servers.resize(servers.size());
  cost.workers.resize(workers.size());
  for (size_t s = 0; s < servers.size(); ++s) {
    for (size_t w = 0; w < workers.size(); ++w) {
      const StepBytes bytes = traffic.Between(servers[s], workers[w]);
      cost.servers[s].bytes += bytes;
      cost.workers[w].bytes += bytes;
    }
  }

  Phases phases;
  int64_t nodes = 0;
  for (const std::vector<uint32_t>& owned : workers) {
    nodes += static_cast<int64_t>(MaximalNodes(owned, training.replicas()).size());
  }
  double recomputed = 0;
  for (const std::vector<ShardSpec>& shards : servers) {
    recomputed = std::max(recomputed, RecomputedShare(job, shards, activation_bytes));
  }
  const ServerWork work(job, plan, speed.server, recomputed);
  for (const Mixture& mixture : mixtures) {
    Phases::Call& call = phases.calls.emplace_back();
    CallTransfers transfers(traffic, mixture, workers);
    for (size_t s = 0; s < servers.size(); ++s) {
      const std::map<MixtureId, int32_t> groups = GroupsOf(servers[s]);
      const auto found = groups.find(mixture.id);
      if (found == groups.end()) continue;
      transfers.AddServer(found->second, &call);
      const Effort forward = work.Forward(mixture, found->second);
      const Effort backward = work.Backward(mixture, found->second);
      cost.servers[s].computing +=
          training.waves() * mixture.calls * (forward + backward).total();
      call.forward_work = Larger(call.forward_work, forward);
      call.backward_work = Larger(call.backward_work, backward);
    }
    transfers.CoverWorkers(&call);
  }
  for (size_t s = 0; s < servers.size(); ++s) {
    HostCost& host = cost.servers[s];
    const Effort join = work.Join(servers[s], nodes);
    const Effort square_sums = work.SquareSums(servers[s]);
    const Effort apply = work.Apply(servers[s]);
    phases.join = Larger(phases.join, join);
    phases.square_sums = Larger(phases.square_sums, square_sums);
    phases.apply = Larger(phases.apply, apply);
    host.computing += (join + square_sums + apply).total();
  }
  size_t most = 0;  // the worker with most replicas
  for (size_t w = 0; w < workers.size(); ++w) {
    HostCost& host = cost.workers[w];
    const auto replicas = static_cast<int64_t>(workers[w].size());
    if (workers[most].size() < workers[w].size()) most = w;
    const auto own =
        static_cast<int64_t>(MaximalNodes(workers[w], training.replicas()).size());
    const WorkerWork of_worker(job, plan, speed.worker, replicas, speed.threads);
    const Effort begin = of_worker.Begin();
    const Effort close = of_worker.Close(own);
    Effort all = begin + close;
    for (const WorkerWork::Segment& segment : of_worker.segments()) {
      all += training.waves() * (segment.forward + segment.backward);
    }
    host.computing = all.total();
    phases.begin = Larger(phases.begin, begin);
    phases.close = Larger(phases.close, close);
  }
  const WorkerWork of_most(job, plan, speed.worker,
                           static_cast<int64_t>(workers[most].size()), speed.threads);
  phases.segments = of_most.segments();
  const auto cover = [&](double StepBytes::*kind, Transfer* transfer) {
    for (const HostCost& host : cost.servers) transfer->Cover({0, host.bytes.*kind});
    for (const HostCost& host : cost.workers) transfer->Cover({host.bytes.*kind, 0});
  };
  cover(&StepBytes::requests, &phases.requests);
  cover(&StepBytes::dense_parameters, &phases.parameters);
  cover(&StepBytes::table_rows, &phases.rows);
  cover(&StepBytes::answers, &phases.answers);
  for (const HostCost& host : cost.servers) phases.closes.Cover({0, host.bytes.closes()});
  for (const HostCost& host : cost.workers) phases.closes.Cover({host.bytes.closes(), 0});
  for (HostCost& host : cost.servers) {
    host.messages = MessageSeconds(host.bytes, speed.server);
    host.network = NetworkSeconds(host.bytes, speed.server);
  }
  for (HostCost& host : cost.workers) {
    host.messages = MessageSeconds(host.bytes, speed.worker);
    host.network = NetworkSeconds(host.bytes, speed.worker);
  }

  std::vector<Play::Exchange> exchanges;
  for (size_t m = 0; m < mixtures.size(); ++m) {
    const int64_t repeated = traffic.Repeated(mixtures[m]);
    for (int64_t call = 0; call < mixtures[m].calls; ++call) {
      Play::Exchange& exchange = exchanges.emplace_back();
      exchange.mixture = static_cast<int>(m);
      // Shared out evenly.
      exchange.repeats = static_cast<int>(repeated * (call + 1) / mixtures[m].calls -
                                          repeated * call / mixtures[m].calls);
      if (repeated > 0) exchange.repeat = of_most.Repeat(mixtures[m]);
    }
  }
  cost.path =
      Play(job, speed, phases, static_cast<int>(servers.size()),
           static_cast<int>(workers.size()))
          .Run(exchanges, job.optimizer().clip_norm() > 0, job.model().has_tables());
  cost.seconds = cost.path.total();
  return cost;
}

}  // namespace moe
