// Devices by local rank, and the group over them.
#include "strategy/ranks.h"

#include <unistd.h>

#include "build_config.h"
#include "core/base/error.h"
#include "core/device/backend.h"
#include "dist/comm_device.h"

namespace castor::strategy {

Device device_of_rank(const std::optional<std::string>& wanted, int local_rank, const std::string& path) {
  const int gpus = visible_gpus();
  if (wanted.value_or(gpus > 0 ? "cuda" : "cpu") == "cpu") return kCpu;
  if (gpus == 0) {
    throw ConfigError(cat(path, ": cuda, but ",
                          kHasCuda ? "no GPU is visible here; see CUDA_VISIBLE_DEVICES, or set it to cpu"
                                   : "this build has no CUDA; build with -Dcuda=enabled, or set it to cpu"),
                      path);
  }
  if (local_rank >= gpus) {
    throw ConfigError(
        cat(path, ": cuda, but local rank ", local_rank, " has no GPU of its own, there ", gpus == 1 ? "is " : "are ",
            gpus, " here; start at most ", gpus, " ranks a host, or set it to cpu"),
        path);
  }
  return {DeviceType::cuda, static_cast<std::int16_t>(local_rank)};
}

namespace {

// Unwinding would wait for the GPU. Like a second Ctrl-C it leaves without destructors; checkpoints survive that.
void end_without_gpu(const dist::Failure& failure) {
  const std::string text =
      cat("castor: ", failure.text, "; this rank's GPU has not come back since, so it ends without waiting for it\n");
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
  _exit(1);
}

}  // namespace

dist::GpuTransport gpu_transport_of(const std::string& name, const std::string& path) {
  if (name == "auto") return dist::GpuTransport::kAuto;
  if (name == "peer") return dist::GpuTransport::kPeer;
  if (name == "nccl") return dist::GpuTransport::kNccl;
  throw ConfigError(cat(path, ": no transport ", name, " between GPUs; there are: auto, peer, nccl"), path);
}

Ranks::Ranks(const dist::RankInfo& info, Device device, const dist::JobOptions& options,
             dist::GpuTransport gpu_transport)
    : job_(info, options), gpu_transport_(gpu_transport) {
  if (device.is_cuda()) {
    gpus_ = dist::make_device_comm(job_.world(), device, job_.health(),
                                   {options.comm.timeout, gpu_transport, end_without_gpu});
  }
}

std::string Ranks::transport_name() const {
  if (gpus_ == nullptr) return job_.transport_name();
  const char* between_gpus = gpu_transport_ == dist::GpuTransport::kAuto ? "their memory where it is reached, else NCCL"
                             : gpu_transport_ == dist::GpuTransport::kPeer ? "their memory"
                                                                           : "NCCL";
  return cat(between_gpus, " between GPUs, ", job_.transport_name(), " between processes");
}

}  // namespace castor::strategy
