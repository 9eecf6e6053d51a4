// Pieces of work that wait for each other and for what they share: when each of them ends, and what
// the last one waited for.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

namespace moe {

// What the time of a step goes into.
enum class Cause {
  kWorkerArithmetic,
  kWorkerMemory,
  kWorkerMessages,
  kServerArithmetic,
  kServerMemory,
  kServerMessages,
  kNetwork,
  kLatency,
};
inline constexpr int kCauses = 8;
// "arithmetic of the workers"
std::string CauseName(Cause cause);

// Seconds by cause.
struct CauseTimes {
  std::array<double, kCauses> seconds = {};

  double& operator[](Cause cause) { return seconds[static_cast<int>(cause)]; }
  double operator[](Cause cause) const { return seconds[static_cast<int>(cause)]; }
  double total() const;
  CauseTimes& operator+=(const CauseTimes& other);
};

class StepTimeline {
 public:
  using Piece = int;
  // Does one piece at a time, in the order in which they could begin.
  using Resource = int;
  static constexpr Resource kNone = -1;

  explicit StepTimeline(int resources) : busy_(resources) {}

  // A piece that begins when all of `after` have ended, and its resource is free; with kNone at once.
  // after: pieces that were added before, or negative numbers, which are nothing.
  Piece Add(Resource resource, const CauseTimes& times,
            std::initializer_list<Piece> after) {
    return Add(resource, times, std::span(after.begin(), after.size()));
  }
  Piece Add(Resource resource, const CauseTimes& times, std::span<const Piece> after);

  // Call once, after all pieces were added.
  void Run();
  double EndOf(Piece piece) const { return pieces_[piece].end; }
  // What a piece's end waited for, from the beginning on; its total is EndOf().
  CauseTimes Path(Piece piece) const;
  // Seconds in which the resource did something.
  double Busy(Resource resource) const { return busy_[resource]; }

 private:
  struct Work {
    Resource resource = kNone;
    CauseTimes times;
    std::vector<Piece> after;
    std::vector<Piece> before;  // those that wait for it
    int waits_for = 0;
    double ready = 0;
    double end = 0;
    Piece last = -1;  // what its beginning waited for
  };
  void Finish(Piece piece, double begin, Piece last, std::vector<Piece>* ready);

  std::vector<Work> pieces_;
  std::vector<double> busy_;
};

}  // namespace moe
