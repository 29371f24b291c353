// Which backend and allocator a device has. Made on first use and never destroyed: tensors with static lifetime may be
// released after main returns. The meta backend hands out addresses nobody may touch.
#include <atomic>
#include <deque>
#include <map>
#include <mutex>

#include "build_config.h"
#include "core/base/error.h"
#include "core/device/backend_cpu.h"
#include "core/device/backend_cuda.h"
#include "core/device/caching_allocator.h"

namespace castor {
namespace {

/// Addresses without bytes: non-canonical on x86-64, so that touching one faults at once.
class MetaBackend final : public Backend {
 public:
  explicit MetaBackend(MetaTarget target) : target_(std::move(target)) {}
  const MetaTarget& target() const { return target_; }

  void* allocate(std::size_t bytes) override {
    const std::uint64_t address = next_;
    next_ += (bytes + 511) / 512 * 512;
    return reinterpret_cast<void*>(address);
  }
  void deallocate(void*, std::size_t) override {}
  void copy_within(void*, const void*, std::size_t) override {}
  void copy_from_host(void*, const void*, std::size_t) override {}
  void copy_to_host(void*, const void*, std::size_t) override {
    throw DeviceError(
        "copy to host: the tensor is on a meta device and has no values; build the model on cpu or cuda to read them");
  }
  void fill_zero(void*, std::size_t) override {}
  void* stream() override { return nullptr; }
  Event record() override { return {}; }
  void wait(const Event&) override {}
  void synchronize() override {}
  bool has_passed(const Event&) override { return true; }
  void wait_on_host(const Event&) override {}
  std::unique_ptr<SideQueue> open_queue() override { return nullptr; }
  std::size_t total_bytes() const override { return target_.limit_bytes; }

 private:
  MetaTarget target_;
  std::uint64_t next_ = 0x4000'0000'0000'0000ull;
};

struct Entry {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<CachingAllocator> allocator;
};

struct Table {
  std::mutex mutex;
  std::map<std::pair<DeviceType, int>, Entry> entries;
  int meta_count = 0;
};

Table& table() {
  static auto* const instance = new Table;
  return *instance;
}

Entry& add(Table& devices, Device device, std::unique_ptr<Backend> backend) {
  Entry& entry = devices.entries[{device.type, device.index}];
  entry.backend = std::move(backend);
  entry.allocator = std::make_unique<CachingAllocator>(*entry.backend, device);
  return entry;
}

/// Memory beside a GPU is page-locked.
std::unique_ptr<Backend> host_backend() {
  if constexpr (kHasCuda) {
    if (cuda_device_count() > 0) return make_page_locked_backend();
  }
  return std::make_unique<CpuBackend>();
}

std::unique_ptr<Backend> cuda_backend(Device device) {
  if constexpr (kHasCuda) {
    return make_cuda_backend(device.index);
  } else {
    throw DeviceError(
        cat("device ", device, ": this build has no CUDA backend; configure with -Dcuda=enabled, or use device cpu"));
  }
}

Entry& entry(Device device) {
  thread_local Device last{DeviceType::cpu, -1};
  thread_local Entry* last_entry = nullptr;
  if (device == last) return *last_entry;
  Table& devices = table();
  const std::lock_guard lock(devices.mutex);
  const auto found = devices.entries.find({device.type, device.index});
  if (found != devices.entries.end()) {
    last_entry = &found->second;
  } else if (device == kCpu) {
    last_entry = &add(devices, device, std::make_unique<CpuBackend>());
  } else if (device == kHost) {
    last_entry = &add(devices, device, host_backend());
  } else if (device.is_cuda()) {
    last_entry = &add(devices, device, cuda_backend(device));
  } else {
    throw DeviceError(cat("device ", to_string(device), ": no such device; meta devices come from make_meta"));
  }
  last = device;
  return *last_entry;
}

}  // namespace

Backend& backend(Device device) { return *entry(device).backend; }

int visible_gpus() {
  if constexpr (kHasCuda) {
    return cuda_device_count();
  } else {
    return 0;
  }
}

CachingAllocator& allocator(Device device) { return *entry(device).allocator; }

void install_backend(Device device, std::unique_ptr<Backend> backend) {
  Table& devices = table();
  const std::lock_guard lock(devices.mutex);
  if (devices.entries.contains({device.type, device.index})) {
    throw DeviceError(cat("install_backend: device ", to_string(device), " already has one"));
  }
  add(devices, device, std::move(backend));
}

Device make_meta(const MetaTarget& target) {
  if (target.type == DeviceType::meta) throw DeviceError("make_meta: the target must be cpu or cuda, got meta");
  Table& devices = table();
  const std::lock_guard lock(devices.mutex);
  const Device device{DeviceType::meta, static_cast<std::int16_t>(devices.meta_count++)};
  add(devices, device, std::make_unique<MetaBackend>(target)).allocator->set_limit(target.limit_bytes);
  return device;
}

const MetaTarget& meta_target(Device device) {
  if (!device.is_meta()) throw DeviceError(cat("meta_target: expected a meta device, got ", to_string(device)));
  return static_cast<MetaBackend&>(backend(device)).target();
}

DeviceType kernel_type(Device device) { return device.is_meta() ? meta_target(device).type : device.type; }

std::string to_string(Device device) {
  switch (device.type) {
    case DeviceType::cpu:
      return device == kHost ? "host" : "cpu";
    case DeviceType::cuda:
      return cat("cuda:", device.index);
    case DeviceType::meta:
      return "meta";
  }
  return "unknown";
}

std::ostream& operator<<(std::ostream& out, Device device) { return out << to_string(device); }

Device device_from_name(const std::string& name) {
  if (name == "cpu") return kCpu;
  if (name == "cuda") return {DeviceType::cuda, 0};
  if (name.starts_with("cuda:") && name.size() > 5 && name.size() < 9 &&
      name.find_first_not_of("0123456789", 5) == std::string::npos) {
    return {DeviceType::cuda, static_cast<std::int16_t>(std::stoi(name.substr(5)))};
  }
  throw DeviceError(cat("device: expected cpu, cuda or cuda:N, got '", name, "'"));
}

}  // namespace castor
