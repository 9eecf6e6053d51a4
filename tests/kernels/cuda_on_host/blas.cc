#include <cblas.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cublas_v2.h"

struct CublasOnHost {
  cudaStream_t stream = nullptr;
};

namespace {

struct Product {
  cublasOperation_t ta, tb;
  int m, n, k;
  float alpha;
  int lda, ldb;
  float beta;
  int ldc;

  void Run(const void* a, const void* b, void* c) const {
    // What the tests use more of than cuBLAS promises.
    if (m <= 0 || n <= 0 || k <= 0 || lda % 4 != 0 || ldb % 4 != 0 || ldc % 4 != 0 ||
        (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) |
         reinterpret_cast<uintptr_t>(c)) %
                16 !=
            0) {
      std::fprintf(stderr,
                   "cuda_on_host: an empty product, or one of unaligned operands\n");
      std::abort();
    }
    const auto turned = [](cublasOperation_t t) {
      return t == CUBLAS_OP_T ? CblasTrans : CblasNoTrans;
    };
    openblas_set_num_threads(1);
    cblas_sgemm(CblasColMajor, turned(ta), turned(tb), m, n, k, alpha,
                static_cast<const float*>(a), lda, static_cast<const float*>(b), ldb,
                beta, static_cast<float*>(c), ldc);
  }
};

}  // namespace

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new CublasOnHost;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t, void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetVersion(cublasHandle_t, int* version) {
  *version = 0;
  return CUBLAS_STATUS_SUCCESS;
}
const char* cublasGetStatusString(cublasStatus_t) { return "an error"; }

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t ta,
                            cublasOperation_t tb, int m, int n, int k, const void* alpha,
                            const void* a, cudaDataType_t, int lda, const void* b,
                            cudaDataType_t, int ldb, const void* beta, void* c,
                            cudaDataType_t, int ldc, cublasComputeType_t,
                            cublasGemmAlgo_t) {
  const Product product{ta,  tb,  m,
                        n,   k,   *static_cast<const float*>(alpha),
                        lda, ldb, *static_cast<const float*>(beta),
                        ldc};
  cuda_on_host::Enqueue(handle->stream, [=] { product.Run(a, b, c); });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmGroupedBatchedEx(
    cublasHandle_t handle, const cublasOperation_t ta[], const cublasOperation_t tb[],
    const int m[], const int n[], const int k[], const void* alpha, const void* const a[],
    cudaDataType_t, const int lda[], const void* const b[], cudaDataType_t,
    const int ldb[], const void* beta, void* const c[], cudaDataType_t, const int ldc[],
    int groups, const int group_size[], cublasComputeType_t) {
  std::vector<Product> products;
  for (int g = 0; g < groups; ++g) {
    const Product product{ta[g],  tb[g],  m[g],
                          n[g],   k[g],   static_cast<const float*>(alpha)[g],
                          lda[g], ldb[g], static_cast<const float*>(beta)[g],
                          ldc[g]};
    products.insert(products.end(), group_size[g], product);
  }
  cuda_on_host::Enqueue(handle->stream, [=, products = std::move(products)] {
    for (size_t i = 0; i < products.size(); ++i) products[i].Run(a[i], b[i], c[i]);
  });
  return CUBLAS_STATUS_SUCCESS;
}
