#include "common/job/step_timeline.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "glog/logging.h"

namespace moe {

std::string CauseName(Cause cause) {
  switch (cause) {
    case Cause::kWorkerArithmetic:
      return "arithmetic of the workers";
    case Cause::kWorkerMemory:
      return "memory bandwidth of the workers";
    case Cause::kWorkerMessages:
      return "messages on the workers";
    case Cause::kServerArithmetic:
      return "arithmetic of the servers";
    case Cause::kServerMemory:
      return "memory bandwidth of the servers";
    case Cause::kServerMessages:
      return "messages on the servers";
    case Cause::kNetwork:
      return "network bandwidth";
    case Cause::kLatency:
      return "network latency";
  }
  LOG(FATAL) << "no such cause";
}

double CauseTimes::total() const {
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

CauseTimes& CauseTimes::operator+=(const CauseTimes& other) {
  for (int i = 0; i < kCauses; ++i) seconds[i] += other.seconds[i];
  return *this;
}

StepTimeline::Piece StepTimeline::Add(Resource resource, const CauseTimes& times,
                                      std::span<const Piece> after) {
  CHECK_LT(resource, static_cast<Resource>(busy_.size()));
  const auto piece = static_cast<Piece>(pieces_.size());
  Work work;
  work.resource = resource;
  work.times = times;
  for (const Piece other : after) {
    CHECK_LT(other, piece);
    if (other < 0) continue;
    pieces_[other].before.push_back(piece);
    ++work.waits_for;
  }
  pieces_.push_back(std::move(work));
  return piece;
}

void StepTimeline::Finish(Piece piece, double begin, Piece last,
                          std::vector<Piece>* ready) {
  Work& work = pieces_[piece];
  work.last = last;
  const double seconds = work.times.total();
  work.end = begin + seconds;
  if (work.resource != kNone) busy_[work.resource] += seconds;
  for (const Piece next : work.before) {
    Work& waiting = pieces_[next];
    if (work.end >= waiting.ready) {
      waiting.ready = work.end;
      waiting.last = piece;
    }
    if (--waiting.waits_for == 0) ready->push_back(next);
  }
}

void StepTimeline::Run() {
  std::vector<Piece> ready;
  for (Piece piece = 0; piece < static_cast<Piece>(pieces_.size()); ++piece) {
    if (pieces_[piece].waits_for == 0) ready.push_back(piece);
  }
  // By resource: what could begin, and what it did last.
  std::vector<std::set<std::pair<double, Piece>>> queues(busy_.size());
  std::vector<Piece> done(busy_.size(), -1);
  size_t left = pieces_.size();
  while (left > 0) {
    while (!ready.empty()) {
      const Piece piece = ready.back();
      ready.pop_back();
      const Work& work = pieces_[piece];
      if (work.resource != kNone) {
        queues[work.resource].emplace(work.ready, piece);
      } else {
        Finish(piece, work.ready, work.last, &ready);
        --left;
      }
    }
    if (left == 0) break;
    // What can begin first: all that becomes ready later can't begin before.
    int first = -1;
    double begin = std::numeric_limits<double>::infinity();
    for (size_t r = 0; r < queues.size(); ++r) {
      if (queues[r].empty()) continue;
      const double free = done[r] < 0 ? 0 : pieces_[done[r]].end;
      const double could = std::max(free, queues[r].begin()->first);
      if (could >= begin) continue;
      begin = could;
      first = static_cast<int>(r);
    }
    CHECK_GE(first, 0) << "pieces wait for each other";
    const Piece piece = queues[first].begin()->second;
    queues[first].erase(queues[first].begin());
    const bool waited = done[first] >= 0 && begin > pieces_[piece].ready;
    Finish(piece, begin, waited ? done[first] : pieces_[piece].last, &ready);
    done[first] = piece;
    --left;
  }
}

CauseTimes StepTimeline::Path(Piece piece) const {
  CauseTimes path;
  for (; piece >= 0; piece = pieces_[piece].last) path += pieces_[piece].times;
  return path;
}

}  // namespace moe
