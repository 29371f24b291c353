// Which device a tensor lives on: a value type. `meta` is *meta of a target*: tensors there have shapes, strides and
// allocator bookkeeping as on the target, but no bytes, so whole training steps can be planned without running them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>

namespace castor {

enum class DeviceType : std::uint8_t { cpu, cuda, meta };

/// A device. Equal devices share an allocator.
struct Device {
  DeviceType type = DeviceType::cpu;
  std::int16_t index = 0;  ///< cuda: ordinal; meta: index into the targets made by `make_meta`; cpu: 0, or 1 for kHost

  constexpr bool is_cpu() const { return type == DeviceType::cpu; }
  constexpr bool is_cuda() const { return type == DeviceType::cuda; }
  constexpr bool is_meta() const { return type == DeviceType::meta; }
  friend constexpr bool operator==(Device, Device) = default;
};

inline constexpr Device kCpu{DeviceType::cpu, 0};
/// The host's memory as a tier of its own, beside a run's device: where the device is the CPU itself, kCpu's memory can
/// be limited as a GPU's is, and what does not fit is moved here. Same kernels; an allocator of its own.
inline constexpr Device kHost{DeviceType::cpu, 1};

/// What a meta device stands for.
struct MetaTarget {
  DeviceType type = DeviceType::cpu;  ///< cpu or cuda
  std::string model;                  ///< "h100"; empty for cpu
  std::size_t limit_bytes = 0;        ///< the target's memory; 0 = not limited
};

/// A new meta device standing for `target`, with an empty allocator of its own.
Device make_meta(const MetaTarget& target);

/// The target of a meta device. Throws DeviceError for another type.
const MetaTarget& meta_target(Device device);

/// The kind of device whose kernels and memory `device` has or stands for: cpu or cuda.
DeviceType kernel_type(Device device);

/// "cpu", "cuda:0", "meta".
std::string to_string(Device device);
std::ostream& operator<<(std::ostream& out, Device device);

/// The device named "cpu", "cuda" or "cuda:1". Throws DeviceError, listing the forms, for anything else.
Device device_from_name(const std::string& name);

/// Tags that pick a kernel by overload; they are also the execution context, so contracts need no CUDA header.
struct Cpu {
  Device device;
};
struct Cuda {
  Device device;
  void* stream = nullptr;  ///< cudaStream_t
};

}  // namespace castor
