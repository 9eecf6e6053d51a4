// As much of OpenBLAS as common/kernels/cpu uses, slowly, for machines that don't have it
// (tests/bench/gpu.sh).
#pragma once

enum CBLAS_ORDER { CblasRowMajor = 101, CblasColMajor = 102 };
enum CBLAS_TRANSPOSE { CblasNoTrans = 111, CblasTrans = 112 };

inline void openblas_set_num_threads(int) {}
inline const char* openblas_get_config() { return "plain loops"; }
inline const char* openblas_get_corename() { return ""; }

inline void cblas_sgemm(CBLAS_ORDER order, CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m,
                        int n, int k, float alpha, const float* a, int lda,
                        const float* b, int ldb, float beta, float* c, int ldc) {
  // The transposed product of the transposed matrices.
  if (order == CblasColMajor) {
    return cblas_sgemm(CblasRowMajor, tb, ta, n, m, k, alpha, b, ldb, a, lda, beta, c,
                       ldc);
  }
  const auto at = [](const float* x, CBLAS_TRANSPOSE t, int stride, long row,
                     long column) {
    return t == CblasTrans ? x[column * stride + row] : x[row * stride + column];
  };
  for (long i = 0; i < m; ++i) {
    for (long j = 0; j < n; ++j) {
      double sum = 0;
      for (long l = 0; l < k; ++l) {
        sum += static_cast<double>(at(a, ta, lda, i, l)) * at(b, tb, ldb, l, j);
      }
      float& to = c[i * ldc + j];
      to = static_cast<float>(alpha * sum) + (beta == 0 ? 0 : beta * to);
    }
  }
}
