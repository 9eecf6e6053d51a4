// How long a host takes for the pieces of a step's work: by its arithmetic and by what it must read
// from memory, whichever is slower. The costs of kernels relative to a large product are constants
// that were measured (docs/design/cost.md).
#pragma once

#include <cstdint>

namespace moe {

// All of it of one host, with all the threads that its member has.
struct HostSpeed {
  // Floating-point operations a second of a large product of floats, two for a multiply-add.
  double flops = 0;
  // Bytes a second that it reads from memory.
  double memory = 0;
  // Bytes of messages a second that it packs and sends, or receives and unpacks, doing nothing else.
  double messages = 0;
  // Bytes a second that its network takes, in either direction.
  double nic = 0;
};

// Seconds of computing, by what takes them.
struct Effort {
  double arithmetic = 0;
  double memory = 0;

  double total() const { return arithmetic + memory; }
  Effort& operator+=(const Effort& other) {
    arithmetic += other.arithmetic;
    memory += other.memory;
    return *this;
  }
  friend Effort operator+(Effort a, const Effort& b) { return a += b; }
  friend Effort operator*(double times, const Effort& each) {
    return {times * each.arithmetic, times * each.memory};
  }
};

// So many floating-point operations while so many bytes are read: the slower of the two.
Effort Piece(const HostSpeed& speed, double flops, double bytes);

// A product [rows, inner] x [inner, cols] of the BLAS, which copies its operands into its own layout
// first. weight_bytes: of an element of the second operand where that comes from memory; 0: it is in
// the caches.
Effort ProductEffort(const HostSpeed& speed, double rows, double cols, double inner,
                     double weight_bytes);
// The same for an expert's few rows, which reads the weights once and copies nothing
// (common/kernels/cpu/few_rows.h).
Effort ExpertProductEffort(const HostSpeed& speed, double rows, double cols, double inner,
                           double weight_bytes);

// What is computed for each element, and costs as much as so many floating-point operations of a
// large product.
struct ElementCost {
  double dropout = 0;       // an element, forward or backward
  double residual = 0;      // the same without dropout
  double sigmoid = 0;       // an element, forward or backward
  double softmax = 0;       // a logit, with its gradient
  double cell_forward = 0;  // an LSTM unit in a time step
  double cell_backward = 0;
  double gate_forward = 0;  // noisy top-k: a token's expert
  double gate_backward = 0;
  double plain_gate_forward = 0;  // the other gates
  double plain_gate_backward = 0;
  double touched = 0;  // a float that is copied, gathered or added
};
inline constexpr ElementCost kElements = {
    .dropout = 80,
    .residual = 20,
    .sigmoid = 60,
    .softmax = 80,
    .cell_forward = 300,
    .cell_backward = 150,
    .gate_forward = 1000,
    .gate_backward = 400,
    .plain_gate_forward = 300,
    .plain_gate_backward = 50,
    .touched = 20,
};
Effort ElementEffort(const HostSpeed& speed, double elements, double cost);

}  // namespace moe
