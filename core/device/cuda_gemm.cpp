// cuBLASLt's descriptors, its choice of algorithm and the table of products a process has met.
//
// Delicate: the library thinks in columns, so it is given the transposed product, c^T = b^T a^T: what it calls A is our
// b, its m is our n. A found product is shared by threads and never written; the bias's address is set in a copy of the
// descriptor, on the caller's stack, where the layouts are copied too: the library takes no const ones.
#include "core/device/cuda_gemm.h"

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include <cublasLt.h>

#include "core/base/error.h"
#include "core/device/cuda_runtime.h"

namespace castor {

class CudaGemm {
 public:
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDescOpaque_t operation{};
  cublasLtMatrixLayoutOpaque_t a{}, b{}, c{};  ///< in our names
  cublasLtMatmulAlgo_t algorithm{};
  bool is_f64 = false, is_fp8 = false, has_bias = false, accumulates = false, is_found = false;
};

namespace {

void check(cublasStatus_t status, const char* what, Device device) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  const cudaError_t last = cudaGetLastError();
  check_cuda(last, what, device);
  throw DeviceError(cat(what, " on ", device, ": cuBLASLt says '", cublasLtGetStatusString(status), "' (",
                        cublasLtGetStatusName(status),
                        "); see that the installed cuBLAS is as new as the CUDA this "
                        "was built with, and nvidia-smi for the device's state"));
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return CUDA_R_16F;
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f32:
      return CUDA_R_32F;
    case DType::f64:
      return CUDA_R_64F;
    case DType::f8e4m3:
      return CUDA_R_8F_E4M3;
    case DType::f8e5m2:
      return CUDA_R_8F_E5M2;
    default:
      throw DTypeError(cat("matmul: expected f32, f16, bf16, f64 or 8-bit floats, got ", dtype));
  }
}

template <class T>
void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const T& value, Device device) {
  check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)), "describe a product", device);
}
template <class T>
void set(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, const T& value, Device device) {
  check(cublasLtMatrixLayoutSetAttribute(layout, attribute, &value, sizeof(value)), "describe a matrix", device);
}
template <class T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value,
         Device device) {
  check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)), "describe a choice",
        device);
}

/// One operand as the library sees it: columns of neighbours, `stride` elements apart.
struct Columns {
  bool is_transposed = false;  ///< of what the library expects of a row-major operand
  std::int64_t length, count, stride;

  /// A matrix [rows, columns] of ours, read as its transpose.
  Columns(std::int64_t rows, std::int64_t columns, std::int64_t row_stride, std::int64_t column_stride) {
    is_transposed = !((column_stride == 1 || columns == 1) && (row_stride >= columns || rows == 1));
    length = is_transposed ? rows : columns;
    count = is_transposed ? columns : rows;
    stride = is_transposed ? column_stride : row_stride;
    if (count == 1) stride = std::max(length, stride);
  }
};

void describe(cublasLtMatrixLayoutOpaque_t& layout, const Columns& columns, DType dtype, std::int64_t batch,
              std::int64_t batch_stride, Device device) {
  check(cublasLtMatrixLayoutInit(&layout, data_type(dtype), static_cast<std::uint64_t>(columns.length),
                                 static_cast<std::uint64_t>(columns.count), columns.stride),
        "describe a matrix", device);
  if (batch == 1) return;
  set(&layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<std::int32_t>(batch), device);
  set(&layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, batch_stride, device);
}

/// A part of an algorithm's configuration, of 2 or 4 bytes; 0 where it has none.
std::uint32_t config(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute) {
  std::uint32_t value = 0;
  std::size_t written = 0;
  if (cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof(value), &written) !=
      CUBLAS_STATUS_SUCCESS)
    cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof(std::uint16_t), &written);
  return value;
}

/// Which proposal is taken. On Hopper version 13.1 of the library mostly puts kernels with options of 4 and above
/// first, where those below are faster, by 3 to 20 %. So, of 16-bit products:
/// - many rows by a row-major left matrix (a layer's forward pass and its gradient by data): a fast kernel, with tiles
///   of 128 x 128 before others; failing those, the tile of 128 x 160. Very long sums (a head's gradient by data): the
///   fast tile of 320 x 64 where 320 divides the columns and 128 does not.
/// - a left matrix by columns (a gradient by weights) over few rows: the fast tile of 128 x 128, or that of 128 x 160,
///   unless the library cuts the sum or puts a fast kernel first itself.
/// - everything else, and the tile of 320 x 128 where the library puts it first: the library's first.
/// tests/gpu/gemm.cpp prints what this rests on. A training is bound by the card's power, too: there it gains 1 to 2 %.
std::size_t pick(const CudaGemmProblem& problem, const std::vector<cublasLtMatmulAlgo_t>& proposals) {
  constexpr std::uint32_t kHopperKernels = 66, kFirstSlowOption = 4;
  constexpr std::int64_t kManyRows = 8192, kFewRows = 8192, kLongSum = 16384;
  const auto is_hopper = [](const cublasLtMatmulAlgo_t& algorithm) {
    return config(algorithm, CUBLASLT_ALGO_CONFIG_ID) == kHopperKernels;
  };
  if (dtype_size(problem.dtype) != 2 || problem.batch > 1 || proposals.empty() ||
      !std::ranges::all_of(proposals, is_hopper))
    return 0;
  const auto tile = [](const cublasLtMatmulAlgo_t& algorithm) {
    return config(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID);
  };
  const auto is_fast = [](const cublasLtMatmulAlgo_t& algorithm) {
    return config(algorithm, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION) < kFirstSlowOption;
  };
  const auto cuts_sum = [](const cublasLtMatmulAlgo_t& algorithm) {
    return config(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1;
  };
  // The first that `rank` gives the highest number above 0.
  const auto best_by = [&](const auto& rank) {
    std::size_t best = 0;
    int best_rank = 0;
    for (std::size_t i = 0; i < proposals.size(); ++i) {
      const int own = cuts_sum(proposals[i]) ? 0 : rank(proposals[i]);
      if (own <= best_rank) continue;
      best = i;
      best_rank = own;
    }
    return best;
  };
  const bool is_row_major = problem.a_column == 1 && problem.a_row >= problem.k;
  const cublasLtMatmulAlgo_t& first = proposals[0];
  const bool fits_320 = problem.n % 320 == 0 && problem.n % 128 != 0;
  if (problem.k <= kLongSum && fits_320 && tile(first) == CUBLASLT_MATMUL_TILE_320x128) return 0;
  if (!is_row_major) {
    if (problem.k > kFewRows || is_fast(first) || cuts_sum(first)) return 0;
    return best_by([&](const cublasLtMatmulAlgo_t& algorithm) {
      if (!is_fast(algorithm)) return 0;
      return tile(algorithm) == CUBLASLT_MATMUL_TILE_128x128 ? 2 : tile(algorithm) == CUBLASLT_MATMUL_TILE_128x160;
    });
  }
  if (problem.m < kManyRows) return 0;
  if (problem.k > kLongSum) {
    return best_by([&](const cublasLtMatmulAlgo_t& algorithm) {
      return fits_320 && is_fast(algorithm) && tile(algorithm) == CUBLASLT_MATMUL_TILE_320x64 ? 1 : 0;
    });
  }
  return best_by([&](const cublasLtMatmulAlgo_t& algorithm) {
    if (is_fast(algorithm)) return tile(algorithm) == CUBLASLT_MATMUL_TILE_128x128 ? 3 : 2;
    return tile(algorithm) == CUBLASLT_MATMUL_TILE_128x160 ? 1 : 0;
  });
}

void set_scales(cublasLtMatmulDesc_t operation, const CudaGemmScales& scales, Device device) {
  set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales.b, device);
  set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales.a, device);
}

/// Asks the library; `is_found` says whether it has an answer.
CudaGemm make(cublasLtHandle_t handle, Device device, const CudaGemmProblem& problem) {
  CudaGemm gemm;
  gemm.handle = handle;
  gemm.is_f64 = problem.dtype == DType::f64;
  gemm.is_fp8 = dtype_size(problem.dtype) == 1;
  gemm.has_bias = problem.has_bias;
  gemm.accumulates = problem.accumulates;
  const Columns a(problem.m, problem.k, problem.a_row, problem.a_column),
      b(problem.k, problem.n, problem.b_row, problem.b_column), c(problem.m, problem.n, problem.c_row, 1);
  describe(gemm.a, a, problem.dtype, problem.batch, problem.a_batch, device);
  describe(gemm.b, b, gemm.is_fp8 ? DType::f8e4m3 : problem.dtype, problem.batch, problem.b_batch, device);
  describe(gemm.c, c, problem.result_dtype, problem.batch, problem.c_batch, device);

  check(cublasLtMatmulDescInit(&gemm.operation, gemm.is_f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                               gemm.is_f64 ? CUDA_R_64F : CUDA_R_32F),
        "describe a product", device);
  set(&gemm.operation, CUBLASLT_MATMUL_DESC_TRANSA, b.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, device);
  set(&gemm.operation, CUBLASLT_MATMUL_DESC_TRANSB, a.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, device);
  // Which addresses does not matter here, but that there are some may.
  if (gemm.is_fp8) {
    set_scales(&gemm.operation, {&gemm, &gemm}, device);
    set(&gemm.operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<std::int8_t>(problem.adds_fast), device);
  }
  if (problem.has_bias) {
    set(&gemm.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS, device);
    set(&gemm.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(problem.result_dtype), device);
    if (problem.bias_batch != 0)
      set(&gemm.operation, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, problem.bias_batch, device);
  }

  cublasLtMatmulPreferenceOpaque_t preference{};
  check(cublasLtMatmulPreferenceInit(&preference), "describe a choice", device);
  set(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kCudaGemmWorkspace, device);
  set(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<std::uint32_t>(gemm.has_bias ? CUBLASLT_REDUCTION_SCHEME_NONE
                                               : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE),
      device);
  set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(problem.b_alignment), device);
  set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(problem.a_alignment), device);
  set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(problem.c_alignment), device);
  set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(problem.c_alignment), device);

  constexpr int kMostProposals = 16;
  std::array<cublasLtMatmulHeuristicResult_t, kMostProposals> results{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, &gemm.operation, &gemm.b, &gemm.a, &gemm.c, &gemm.c, &preference, kMostProposals, results.data(), &count);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE)
    check(status, "choose an algorithm for a product", device);
  std::vector<cublasLtMatmulAlgo_t> proposals;
  for (int i = 0; i < count; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<std::size_t>(i)];
    const bool splits = config(result.algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) != CUBLASLT_REDUCTION_SCHEME_NONE;
    if (result.state == CUBLAS_STATUS_SUCCESS && !(splits && gemm.has_bias)) proposals.push_back(result.algo);
  }
  const std::size_t picked = problem.choice >= 0 ? static_cast<std::size_t>(problem.choice) : pick(problem, proposals);
  gemm.is_found = picked < proposals.size();
  if (gemm.is_found) gemm.algorithm = proposals[picked];
  return gemm;
}

struct ProblemHash {
  std::size_t operator()(const CudaGemmProblem& p) const {
    std::uint64_t hash = 0x9E3779B97F4A7C15ull;
    for (const std::int64_t value :
         {static_cast<std::int64_t>(p.dtype), static_cast<std::int64_t>(p.result_dtype), std::int64_t{p.has_bias},
          std::int64_t{p.adds_fast}, std::int64_t{p.accumulates}, std::int64_t{p.choice}, p.batch, p.m, p.n, p.k,
          p.a_batch, p.a_row, p.a_column, p.b_batch, p.b_row, p.b_column, p.c_batch, p.c_row, p.bias_batch}) {
      hash = (hash ^ static_cast<std::uint64_t>(value)) * 0xFF51AFD7ED558CCDull;
      hash ^= hash >> 32;
    }
    return static_cast<std::size_t>(hash);
  }
};

/// The library's handle of one device and the products met there. Never destroyed: tensors with static lifetime may
/// still compute after main returns.
struct DeviceGemms {
  std::mutex mutex;
  cublasLtHandle_t handle = nullptr;
  std::unordered_map<CudaGemmProblem, std::unique_ptr<const CudaGemm>, ProblemHash> products;
};

DeviceGemms& gemms_of(Device device) {
  static std::mutex mutex;
  static auto* const devices = new std::unordered_map<int, std::unique_ptr<DeviceGemms>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<DeviceGemms>& gemms = (*devices)[device.index];
  if (!gemms) gemms = std::make_unique<DeviceGemms>();
  return *gemms;
}

}  // namespace

int gemm_alignment(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  int alignment = 1;
  while (alignment < 16 && address % static_cast<std::uintptr_t>(2 * alignment) == 0) alignment *= 2;
  return alignment;
}

std::string cuda_gemm_library() {
  const std::size_t version = cublasLtGetVersion();  // 130002 is 13.0.2
  return cat("cuBLASLt ", version / 10000, ".", version / 100 % 100, ".", version % 100);
}

bool has_cuda_fp8_units(Device device) {
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index), "ask what it is", device);
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.index), "ask what it is", device);
  return major > 8 || (major == 8 && minor == 9);
}

const CudaGemm* find_cuda_gemm(Device device, const CudaGemmProblem& problem) {
  DeviceGemms& gemms = gemms_of(device);
  const std::lock_guard lock(gemms.mutex);
  if (const auto known = gemms.products.find(problem); known != gemms.products.end())
    return known->second->is_found ? known->second.get() : nullptr;
  check_cuda(cudaSetDevice(device.index), "use the device", device);
  if (gemms.handle == nullptr) check(cublasLtCreate(&gemms.handle), "start cuBLASLt", device);
  const auto added =
      gemms.products.emplace(problem, std::make_unique<const CudaGemm>(make(gemms.handle, device, problem))).first;
  return added->second->is_found ? added->second.get() : nullptr;
}

std::string cuda_gemm_name(const CudaGemm& gemm) {
  constexpr std::pair<const char*, cublasLtMatmulAlgoConfigAttributes_t> kParts[] = {
      {"algorithm ", CUBLASLT_ALGO_CONFIG_ID},
      {", tile ", CUBLASLT_ALGO_CONFIG_TILE_ID},
      {", stages ", CUBLASLT_ALGO_CONFIG_STAGES_ID},
      {", split ", CUBLASLT_ALGO_CONFIG_SPLITK_NUM},
      {", reduction ", CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME},
      {", swizzle ", CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING},
      {", option ", CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION},
      {", inner ", CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID},
      {", cluster ", CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID},
  };
  std::string text;
  for (const auto& [name, attribute] : kParts) {
    text += cat(name, config(gemm.algorithm, attribute));
  }
  return text;
}

void run_cuda_gemm(const Cuda& cuda, const CudaGemm& gemm, const void* a, const void* b, const void* bias, void* c,
                   void* workspace, const CudaGemmScales& scales) {
  cublasLtMatmulDescOpaque_t operation = gemm.operation;
  cublasLtMatrixLayoutOpaque_t layout_a = gemm.a, layout_b = gemm.b, layout_c = gemm.c;
  if (gemm.has_bias) set(&operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias, cuda.device);
  if (gemm.is_fp8) set_scales(&operation, scales, cuda.device);
  constexpr float kOne = 1, kZero = 0;
  constexpr double kOneF64 = 1, kZeroF64 = 0;
  const void* const alpha = gemm.is_f64 ? static_cast<const void*>(&kOneF64) : &kOne;
  const void* const zero = gemm.is_f64 ? static_cast<const void*>(&kZeroF64) : &kZero;
  check(cublasLtMatmul(gemm.handle, &operation, alpha, b, &layout_b, a, &layout_a, gemm.accumulates ? alpha : zero, c,
                       &layout_c, c, &layout_c, &gemm.algorithm, workspace, kCudaGemmWorkspace, stream_of(cuda)),
        "matmul", cuda.device);
}

}  // namespace castor
