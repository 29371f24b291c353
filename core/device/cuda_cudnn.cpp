// The choice of a plan, the table of those that a process has met, and their launch.
//
// Delicate: the library proposes engines in its own order and the first that passes is taken: it must be made of
// determined orders of additions, must be one that finalizes for this GPU, and must do with the workspace allowed. A
// library's handle belongs to one device and carries its stream, so launches on a device take turns.
#include "core/device/cuda_cudnn.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/base/log.h"
#include "core/device/cuda_cudnn_graph.h"
#include "core/device/cuda_cudnn_library.h"
#include "core/device/cuda_runtime.h"

namespace castor {

class CudnnAttention {
 public:
  CudnnAttentionProblem problem;
  std::unique_ptr<cudnn::Descriptor> plan;  ///< null: refused
  std::string name, why;
  std::size_t workspace = 0;  ///< bytes
};

namespace {

using namespace cudnn;

/// The descriptors that `from` has under `attribute`, up to `most`.
std::vector<Descriptor> descriptors(const Descriptor& from, cudnnBackendAttributeName_t attribute,
                                    cudnnBackendDescriptorType_t type, const char* name, std::int64_t most) {
  std::vector<Descriptor> found;
  for (std::int64_t i = 0; i < most; ++i) found.emplace_back(type, name);
  if (most > 0) from.fill(attribute, found);
  return found;
}

/// Proposals of one of the library's heuristics, best first.
std::vector<Descriptor> proposals(const Descriptor& graph, cudnnBackendHeurMode_t mode) {
  Descriptor heuristic(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, "the heuristic");
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
  heuristic.finalize();
  return descriptors(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, "a proposal",
                     heuristic.count(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR));
}

/// "engine 10, knobs 24=3 27=1": what a proposal is, in the library's numbers.
std::string describe(const Descriptor& proposal, const Descriptor& engine) {
  std::int64_t index = -1;
  engine.read(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, index);
  std::string text = cat("engine ", index, ", knobs");
  for (const Descriptor& choice : descriptors(proposal, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                                              CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, "a knob", CUDNN_KNOB_TYPE_COUNTS)) {
    cudnnBackendKnobType_t knob = CUDNN_KNOB_TYPE_COUNTS;
    std::int64_t value = 0;
    choice.read(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, knob);
    choice.read(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, value);
    text += cat(' ', static_cast<int>(knob), '=', value);
  }
  return text;
}

bool is_deterministic(const Descriptor& engine) {
  std::vector<cudnnBackendNumericalNote_t> notes(CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
  notes.resize(engine.fill(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, notes));
  return std::find(notes.begin(), notes.end(), CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) == notes.end();
}

/// Makes the proposal `attention`'s plan, or throws Refusal, which names it.
void take(CudnnAttention& attention, cudnnHandle_t handle, const Descriptor& proposal, std::size_t most_workspace) {
  const std::vector<Descriptor> engine =
      descriptors(proposal, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR, "an engine", 1);
  const std::string name = describe(proposal, engine.at(0));
  try {
    if (!is_deterministic(engine.at(0))) throw Refusal("its sums differ from run to run");
    auto plan = std::make_unique<Descriptor>(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, "the plan");
    plan->set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
    plan->set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, proposal);
    plan->finalize();
    std::int64_t bytes = 0;
    plan->read(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, bytes);
    const auto workspace = static_cast<std::size_t>(bytes);
    if (workspace > most_workspace) {
      throw Refusal(cat("needs ", workspace, " bytes of workspace, ", most_workspace, " were expected"));
    }
    attention.workspace = workspace;
    attention.name = cat(name, ", workspace ", workspace);
    attention.plan = std::move(plan);
  } catch (const Refusal& refusal) {
    throw Refusal(cat(name, ": ", refusal.what()));
  }
}

/// Gives `attention` the first plan that is possible. Throws Refusal with all reasons when there is none.
void choose(CudnnAttention& attention, cudnnHandle_t handle, std::size_t most_workspace) {
  const AttentionGraph graph = attention_graph(attention.problem, handle);
  std::string reasons;
  const auto note = [&reasons](const Refusal& refusal) { reasons += cat(reasons.empty() ? "" : "; ", refusal.what()); };
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    try {
      for (const Descriptor& proposal : proposals(*graph.graph, mode)) {
        try {
          return take(attention, handle, proposal, most_workspace);
        } catch (const Refusal& refusal) {
          note(refusal);
        }
      }
    } catch (const Refusal& refusal) {
      note(refusal);
    }
  }
  throw Refusal(reasons.empty() ? "it proposes no engine" : reasons);
}

struct ProblemHash {
  std::size_t operator()(const CudnnAttentionProblem& p) const {
    std::uint64_t hash = 0x9E3779B97F4A7C15ull;
    const auto add = [&](std::int64_t value) {
      hash = (hash ^ static_cast<std::uint64_t>(value)) * 0xFF51AFD7ED558CCDull;
      hash ^= hash >> 32;
    };
    for (const std::int64_t value : {static_cast<std::int64_t>(p.dtype), std::int64_t{p.is_causal}, p.batch, p.queries,
                                     p.keys, p.heads, p.key_heads, p.dim}) {
      add(value);
    }
    for (const CudnnRows& rows : {p.q, p.k, p.v, p.out}) {
      add(rows.batch);
      add(rows.position);
      add(rows.head);
    }
    return static_cast<std::size_t>(hash);
  }
};

/// The library's handle of one device and the problems met there. Never destroyed: tensors with static lifetime may
/// still compute after main returns.
struct DevicePlans {
  std::mutex mutex;
  cudnnHandle_t handle = nullptr;
  std::unordered_map<CudnnAttentionProblem, std::unique_ptr<const CudnnAttention>, ProblemHash> plans;
};

DevicePlans& plans_of(Device device) {
  static std::mutex mutex;
  static auto* const devices = new std::unordered_map<int, std::unique_ptr<DevicePlans>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<DevicePlans>& plans = (*devices)[device.index];
  if (!plans) plans = std::make_unique<DevicePlans>();
  return *plans;
}

/// One line a process.
void say_that_there_is_none() {
  static std::once_flag said;
  std::call_once(said, [] {
    logger().warning("attention runs on this program's own kernels alone, cuDNN cannot be used: ", library_refusal());
  });
}

std::string name_of(const CudnnAttentionProblem& p) {
  return cat(p.dtype, p.is_causal ? " causal" : "", ", batch ", p.batch, ", ", p.queries, " queries, ", p.keys,
             " keys, ", p.heads, "/", p.key_heads, " heads of ", p.dim);
}

}  // namespace

bool has_cudnn() { return true; }

const CudnnAttention* find_cudnn_attention(Device device, const CudnnAttentionProblem& problem,
                                           std::size_t most_workspace, std::string* why) {
  if (library() == nullptr) {
    say_that_there_is_none();
    if (why != nullptr) *why = library_refusal();
    return nullptr;
  }
  DevicePlans& plans = plans_of(device);
  const std::lock_guard lock(plans.mutex);
  auto known = plans.plans.find(problem);
  if (known == plans.plans.end()) {
    check_cuda(cudaSetDevice(device.index), "use the device", device);
    auto made = std::make_unique<CudnnAttention>();
    made->problem = problem;
    try {
      if (plans.handle == nullptr) check(library()->create(&plans.handle), "start cuDNN");
      choose(*made, plans.handle, most_workspace);
    } catch (const Refusal& refusal) {
      made->why = refusal.what();
      logger().warning("attention of ", name_of(problem), " runs on this program's own kernels, cuDNN ",
                       version_text(library()->version), " does not do it: ", made->why);
    }
    check_cuda(cudaGetLastError(), "plan an attention", device);
    known = plans.plans.emplace(problem, std::move(made)).first;
  }
  if (why != nullptr) *why = known->second->why;
  return known->second->plan == nullptr ? nullptr : known->second.get();
}

std::size_t cudnn_attention_workspace(const CudnnAttention& plan) { return plan.workspace; }

std::string cudnn_attention_name(const CudnnAttention& plan) { return plan.name; }

void run_cudnn_attention(const Cuda& cuda, const CudnnAttention& plan, const CudnnAttentionOperands& x, float scale,
                         void* workspace) {
  float masked = -std::numeric_limits<float>::infinity();
  std::vector<std::int64_t> ids{kQ, kK, kV, kOut, kLse, kScale};
  std::vector<const void*> addresses{x.q, x.k, x.v, x.out, x.lse, &scale};
  if (plan.problem.is_causal) {
    ids.push_back(kMasked);
    addresses.push_back(&masked);
  }
  DevicePlans& plans = plans_of(cuda.device);
  const std::lock_guard lock(plans.mutex);
  try {
    Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, "the operands");
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, ids);
    pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, addresses);
    pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
    pack.finalize();
    check(library()->set_stream(plans.handle, stream_of(cuda)), "choose the stream");
    check(library()->execute(plans.handle, plan.plan->get(), pack.get()), "launch");
  } catch (const Refusal& refusal) {
    const cudaError_t last = cudaGetLastError();
    check_cuda(last, "attention", cuda.device);
    throw DeviceError(cat("attention on ", cuda.device, ": cuDNN says '", refusal.what(),
                          "'; see nvidia-smi for the device's state, or use a build without -Dcudnn=enabled"));
  }
}

std::string cudnn_version() { return library() == nullptr ? "" : version_text(library()->version); }

}  // namespace castor
