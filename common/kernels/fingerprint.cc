// Fixed probes of everything whose bits could differ between machines: products of several shapes
// (a BLAS chooses kernels by processor and size) and the elementary functions.
#include <bit>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <vector>

#include "common/kernels/backend.h"

namespace moe {
namespace {

class Hash {  // FNV-1a on 32-bit words, mixed at the end
 public:
  void Add(uint32_t word) { state_ = (state_ ^ word) * 0x100000001B3; }
  void Add(double x) {
    Add(static_cast<uint32_t>(std::bit_cast<uint64_t>(x)));
    Add(static_cast<uint32_t>(std::bit_cast<uint64_t>(x) >> 32));
  }
  void Add(const Tensor& tensor) {
    std::vector<float> host(tensor.size());
    tensor.Download(host);
    for (float x : host) Add(std::bit_cast<uint32_t>(x));
  }
  std::string Hex() const {
    uint64_t x = state_;
    for (int i = 0; i < 2; ++i) x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93;
    char text[17];
    std::snprintf(text, sizeof text, "%016llx",
                  static_cast<unsigned long long>(x ^ (x >> 32)));
    return text;
  }

 private:
  uint64_t state_ = 0xCBF29CE484222325;
};

// Numbers that are the same everywhere and not too regular: bits of a generator, scaled exactly.
class Probe {
 public:
  explicit Probe(Backend& backend) : backend_(backend) {}

  Tensor Make(int64_t rows, int64_t cols) {
    Tensor tensor(backend_, rows, cols);
    std::vector<float> host(rows * cols);
    FillUniform(MakeKey(0, Purpose::kProbe, {.tensor = count_++}), 0, host);
    for (float& x : host) x = x * 4 - 2;
    tensor.Upload(host);
    return tensor;
  }

 private:
  Backend& backend_;
  uint32_t count_ = 0;
};

void AddProducts(Backend& backend, Probe& probe, Hash& hash) {
  struct Shape {
    int64_t m, n, k;
  };
  for (const Shape& s : {Shape{1, 64, 48}, Shape{4, 96, 64}, Shape{7, 33, 129},
                         Shape{32, 128, 64}, Shape{65, 72, 400}, Shape{256, 48, 33}}) {
    for (Transpose ta : {Transpose::kNo, Transpose::kYes}) {
      for (Transpose tb : {Transpose::kNo, Transpose::kYes}) {
        const Tensor a =
            ta == Transpose::kNo ? probe.Make(s.m, s.k) : probe.Make(s.k, s.m);
        const Tensor b =
            tb == Transpose::kNo ? probe.Make(s.k, s.n) : probe.Make(s.n, s.k);
        const Tensor c = probe.Make(s.m, s.n);
        backend.Gemm(ta, tb, 1, a.view(), b.view(), 0, c.view());
        hash.Add(c);
        backend.Gemm(ta, tb, 1, a.view(), b.view(), 1, c.view());
        hash.Add(c);
      }
    }
  }
}

// Of the mathematics library, in double.
void AddLibrary(Hash& hash) {
  for (int i = 1; i <= 50; ++i) {
    const double x = 0.37 * i;
    hash.Add(std::exp(-x));
    hash.Add(std::log(x));
    hash.Add(std::log1p(1 / x));
    hash.Add(std::expm1(-x));
  }
}

void AddElementwise(Backend& backend, Probe& probe, Hash& hash) {
  const int64_t n = 100;
  const Tensor x = probe.Make(20, n);
  const Tensor y = probe.Make(20, n);
  const RandomKey key = MakeKey(1, Purpose::kProbe, {});
  backend.SigmoidForward(x.view(), y.view());
  hash.Add(y);
  backend.DropoutForward(key, 0.4f, x.view(), y.view(), y.view());
  hash.Add(y);

  const Tensor gates = probe.Make(20, 4 * n);
  const Tensor c = probe.Make(20, n);
  const Tensor tanh_c = probe.Make(20, n);
  const Tensor h = probe.Make(20, n);
  backend.LstmCellForward(gates.view(), x.view(), c.view(), tanh_c.view(), h.view());
  for (const Tensor* out : {&gates, &c, &tanh_c, &h}) hash.Add(*out);
  backend.LstmCellBackward(gates.view(), x.view(), tanh_c.view(), h.view(), c.view(),
                           gates.view());
  hash.Add(gates);
  hash.Add(c);

  const Tensor logits = probe.Make(20, n);
  const std::vector<int32_t> target(20, 3);
  hash.Add(backend.SoftmaxCrossEntropy(logits.view(), target, 0.5f));
  hash.Add(logits);
  hash.Add(backend.SquareSum(logits.size(), logits.data()));

  const Tensor m = probe.Make(1, n);
  Tensor v = probe.Make(1, n);
  v.Upload(std::vector<float>(n, 0.25f));
  OptimizerStep step;
  step.kind = OptimizerStep::Kind::kAdam;
  step.adam.rate = 0.01f;
  step.adam.count = 3;
  backend.OptimizerUpdate(step, x.Rows(0, 1), y.data(), m.data(), v.data());
  step.second_moment = SecondMoment::kFactored;
  step.adam.beta1 = 0;
  Tensor averages = probe.Make(1, 20 + n);
  averages.Upload(std::vector<float>(20 + n, 0.25f));
  backend.OptimizerUpdate(step, x.view(), y.data(), nullptr, averages.data());
  hash.Add(averages);
  for (const Tensor* out : std::initializer_list<const Tensor*>{&y, &m, &v})
    hash.Add(*out);
}

void AddGating(Backend& backend, Probe& probe, Hash& hash) {
  const int64_t tokens = 20;
  const int64_t n = 40;
  const int32_t k = 3;
  const Tensor clean = probe.Make(tokens, n);
  const Tensor raw = probe.Make(tokens, n);
  const Tensor noise = probe.Make(tokens, n);
  const Tensor gate = probe.Make(tokens, k);
  const Array<int32_t> expert(backend, tokens * k);
  const Array<int32_t> threshold(backend, tokens * 2);
  const Array<double> importance(backend, n);
  const Array<double> load(backend, n);
  GateBatch batch;
  batch.clean = clean.view();
  batch.raw = raw.view();
  batch.noise = noise.view();
  batch.k = k;
  batch.with_noise = true;
  batch.key = MakeKey(2, Purpose::kProbe, {});
  batch.expert = expert.data();
  batch.gate = gate.data();
  batch.threshold = threshold.data();
  batch.importance = importance.data();
  batch.load = load.data();
  backend.NoisyTopKForward(batch);
  hash.Add(noise);
  hash.Add(gate);
  std::vector<double> sums(n);
  for (const Array<double>* array : {&importance, &load}) {
    array->Download(sums);
    for (double x : sums) hash.Add(x);
  }
  const Tensor dgate = probe.Make(tokens, k);
  const Tensor dload = probe.Make(1, n);
  const Tensor dclean = probe.Make(tokens, n);
  const Tensor draw = probe.Make(tokens, n);
  backend.NoisyTopKBackward(batch, dgate.data(), dload.data(), dclean.view(),
                            draw.view());
  hash.Add(dclean);
  hash.Add(draw);
}

void AddStrictGating(Backend& backend, Probe& probe, Hash& hash) {
  const int64_t tokens = 20;
  const int64_t n = 40;
  const Tensor x = probe.Make(tokens, n);
  backend.LogSoftmax(x.view());
  hash.Add(x);
  const Array<uint8_t> chosen(backend, tokens * n / 8);
  const Array<int32_t> offset(backend, tokens + 1);
  backend.ChooseLargest(x.view(), 3, MakeKey(3, Purpose::kProbe, {}), chosen.data());
  const int64_t pairs = backend.CountChosen(tokens, n, chosen.data(), offset.data());
  const Array<int32_t> expert(backend, pairs);
  const Tensor gate = probe.Make(1, pairs);
  backend.ChosenSoftmaxForward(x.view(), chosen.data(), offset.data(), expert.data(),
                               gate.data());
  hash.Add(gate);
  const Tensor dgate = probe.Make(1, pairs);
  backend.ChosenSoftmaxBackward(offset.data(), expert.data(), gate.data(), dgate.data(),
                                x.view());
  hash.Add(x);
}

void AddExperts(Backend& backend, Probe& probe, Hash& hash) {
  const int64_t d = 48;
  const int64_t h = 80;
  for (int64_t rows : {1, 3, 9, 40}) {
    const Tensor w1 = probe.Make(d, h);
    const Tensor w2 = probe.Make(h, d);
    float* const weights[] = {w1.data(), w2.data()};
    const Tensor x = probe.Make(rows, d);
    const Tensor hidden = probe.Make(rows, h);
    const Tensor y = probe.Make(rows, d);
    const Tensor gate = probe.Make(1, rows);
    const Tensor dgate = probe.Make(1, rows);
    const Tensor dhidden = probe.Make(rows, h);
    const Tensor dx = probe.Make(rows, d);
    const ExpertRows expert{.w = weights, .begin = 0, .rows = rows};
    const Matrix hidden_out[] = {hidden.view()};
    const ConstMatrix hidden_in[] = {hidden.view()};
    const Matrix dhidden_out[] = {dhidden.view()};
    const ConstMatrix dhidden_in[] = {dhidden.view()};
    backend.ExpertForward({&expert, 1}, x.view(), hidden_out, y.view());
    backend.ExpertBackward({&expert, 1}, ConstMatrix(), y.view(), gate.data(), hidden_in,
                           dgate.data(), dhidden_out, dx.view());
    OptimizerStep step;
    step.adam.rate = 0.01f;
    const OptimizerStep steps[] = {step, step};
    ExpertUpdate update;
    update.expert = expert;
    update.steps = steps;
    backend.ExpertUpdates({&update, 1}, x.view(), hidden_in, dhidden_in, y.view());
    for (const Tensor* out : {&hidden, &y, &dgate, &dhidden, &dx, &w1, &w2})
      hash.Add(*out);
  }
}

}  // namespace

std::string NumericsFingerprint(Backend& backend) {
  Probe probe(backend);
  Hash hash;
  AddProducts(backend, probe, hash);
  AddLibrary(hash);
  AddElementwise(backend, probe, hash);
  AddGating(backend, probe, hash);
  AddStrictGating(backend, probe, hash);
  AddExperts(backend, probe, hash);
  return hash.Hex();
}

}  // namespace moe
