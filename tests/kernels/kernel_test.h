// One suite for every kind of device: a test takes its backend from the parameter and compares with
// plain float64 loops over host matrices.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/kernels/backend.h"

namespace moe {

struct Device {
  std::string name;
  // Null with *error where the machine has no such device.
  std::function<std::unique_ptr<Backend>(int threads, std::string* error)> make;
};

// Those that the test is linked with: devices.cc, or devices_on_host.cc.
std::vector<Device> Devices();

inline std::string DeviceName(const testing::TestParamInfo<Device>& info) {
  return info.param.name;
}

class KernelTest : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    std::string error;
    backend_ = GetParam().make(2, &error);
    if (backend_ == nullptr) GTEST_SKIP() << error;
  }
  Backend& backend() { return *backend_; }

 private:
  std::unique_ptr<Backend> backend_;
};

// A matrix of the host, without gaps.
struct HostMatrix {
  HostMatrix(int64_t rows, int64_t cols) : rows(rows), cols(cols), values(rows * cols) {}
  float& operator()(int64_t r, int64_t c) { return values[r * cols + c]; }
  float operator()(int64_t r, int64_t c) const { return values[r * cols + c]; }

  int64_t rows;
  int64_t cols;
  std::vector<float> values;
};

// Random matrices; each call gives other numbers.
class Random {
 public:
  explicit Random(uint64_t seed = 1) : key_(MakeKey(seed, Purpose::kProbe, {})) {}
  HostMatrix Normal(int64_t rows, int64_t cols, float scale = 1) {
    HostMatrix x(rows, cols);
    FillNormal(key_, row_++, x.values);
    for (float& v : x.values) v *= scale;
    return x;
  }
  std::vector<int32_t> Below(int32_t n, int64_t count) {
    std::vector<uint32_t> bits(count);
    FillBits(key_, row_++, bits);
    std::vector<int32_t> out(count);
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(bits[i] % n);
    return out;
  }

 private:
  RandomKey key_;
  uint64_t row_ = 0;
};

// A matrix of the device whose rows lie `gap` elements apart, shifted by `gap` from the start of
// the allocation. What lies between is NaN and must stay so.
class DeviceMatrix {
 public:
  DeviceMatrix(Backend& backend, const HostMatrix& host, int64_t gap = 0)
      : rows_(host.rows),
        cols_(host.cols),
        gap_(gap),
        memory_(backend, gap + rows_ * (cols_ + gap)) {
    std::vector<float> all(memory_.size(), std::numeric_limits<float>::quiet_NaN());
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) all[At(r, c)] = host(r, c);
    }
    memory_.Upload(all);
  }
  DeviceMatrix(Backend& backend, int64_t rows, int64_t cols, int64_t gap = 0)
      : DeviceMatrix(backend, HostMatrix(rows, cols), gap) {}

  Matrix view() const {
    return Matrix(memory_.size() > 0 ? memory_.data() + gap_ : nullptr, rows_, cols_,
                  cols_ + gap_);
  }
  float* data() const { return view().data; }
  HostMatrix Get() const {
    std::vector<float> all(memory_.size());
    memory_.Download(all);
    HostMatrix host(rows_, cols_);
    size_t kept = 0;
    for (float x : all) kept += std::isnan(x);
    EXPECT_GE(kept, static_cast<size_t>(gap_ * (rows_ + 1))) << "wrote between rows";
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) host(r, c) = all[At(r, c)];
    }
    return host;
  }

 private:
  int64_t At(int64_t r, int64_t c) const { return gap_ + r * (cols_ + gap_) + c; }

  int64_t rows_;
  int64_t cols_;
  int64_t gap_;
  Array<float> memory_;
};

template <typename T>
std::vector<T> Download(const Array<T>& array) {
  std::vector<T> host(array.size());
  array.Download(host);
  return host;
}

// |actual - expected| <= tolerance (1 + |expected|).
inline void ExpectNear(double expected, double actual, double tolerance,
                       const std::string& what = "") {
  EXPECT_NEAR(expected, actual, tolerance * (1 + std::abs(expected))) << what;
}

inline std::vector<double> Doubles(const HostMatrix& x) {
  return std::vector<double>(x.values.begin(), x.values.end());
}

// Compares `gradient` with central differences of f, one number of x at a time.
inline void ExpectGradient(const std::function<double(const std::vector<double>&)>& f,
                           const HostMatrix& at, const HostMatrix& gradient,
                           double tolerance, const std::string& what) {
  std::vector<double> x = Doubles(at);
  for (size_t i = 0; i < x.size(); ++i) {
    const double before = x[i];
    const double step = 1e-5;
    x[i] = before + step;
    const double above = f(x);
    x[i] = before - step;
    const double below = f(x);
    x[i] = before;
    ExpectNear((above - below) / (2 * step), gradient.values[i], tolerance,
               what + " " + std::to_string(i));
  }
}

}  // namespace moe
