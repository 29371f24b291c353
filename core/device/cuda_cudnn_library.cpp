// Finding the library, and the texts of its refusals.
//
// Delicate: libcudnn.so.9 is a small front that opens its parts itself, from its own folder. It is never closed: plans
// and handles live as long as the process.
#include "core/device/cuda_cudnn_library.h"

#include <array>
#include <utility>

#include <dlfcn.h>

namespace castor::cudnn {
namespace {

constexpr const char* kFile = "libcudnn.so.9";

struct Opened {
  Library library;
  std::string refusal;

  Opened() {
    void* const file = dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
    if (file == nullptr) {
      const char* const why = dlerror();
      refusal = cat(why == nullptr ? kFile : why, "; install cuDNN ", version_text(kOldestCudnn),
                    " or newer (PyPI's nvidia-cudnn-cu13 has it) and name its folder in LD_LIBRARY_PATH");
      return;
    }
    const auto find = [&](const char* name, auto& function) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(file, name));
      if (function == nullptr && refusal.empty()) {
        refusal = cat(kFile, " has no ", name, ": it is older than cuDNN ", version_text(kOldestCudnn));
      }
    };
    find("cudnnGetVersion", library.get_version);
    find("cudnnGetErrorString", library.get_error_string);
    find("cudnnGetLastErrorString", library.get_last_error_string);
    find("cudnnCreate", library.create);
    find("cudnnSetStream", library.set_stream);
    find("cudnnBackendCreateDescriptor", library.create_descriptor);
    find("cudnnBackendDestroyDescriptor", library.destroy_descriptor);
    find("cudnnBackendSetAttribute", library.set_attribute);
    find("cudnnBackendGetAttribute", library.get_attribute);
    find("cudnnBackendFinalize", library.finalize);
    find("cudnnBackendExecute", library.execute);
    if (!refusal.empty()) return;
    library.version = library.get_version();
    if (library.version < kOldestCudnn) {
      refusal = cat(kFile, " is cuDNN ", version_text(library.version), "; install ", version_text(kOldestCudnn),
                    " or newer, or put its folder first in LD_LIBRARY_PATH");
    }
  }
};

const Opened& opened() {
  static const auto* const once = new Opened;
  return *once;
}

}  // namespace

const Library* library() { return opened().refusal.empty() ? &opened().library : nullptr; }

const std::string& library_refusal() { return opened().refusal; }

std::string version_text(std::size_t version) {
  return cat(version / 10000, '.', version / 100 % 100, '.', version % 100);
}

void check(cudnnStatus_t status, const std::string& what) {
  if (status == CUDNN_STATUS_SUCCESS) [[likely]]
    return;
  std::array<char, 1024> words{};
  library()->get_last_error_string(words.data(), words.size());
  throw Refusal(cat(what, ": ", library()->get_error_string(status), words[0] == '\0' ? "" : ": ", words.data()));
}

Descriptor::Descriptor(cudnnBackendDescriptorType_t type, std::string name) : name_(std::move(name)) {
  check(library()->create_descriptor(type, &descriptor_), "make " + name_);
}

Descriptor::~Descriptor() {
  if (descriptor_ != nullptr) library()->destroy_descriptor(descriptor_);
}

Descriptor::Descriptor(Descriptor&& other) noexcept
    : name_(std::move(other.name_)), descriptor_(std::exchange(other.descriptor_, nullptr)) {}

void Descriptor::set(cudnnBackendAttributeName_t attribute, const std::vector<const Descriptor*>& values) {
  std::vector<cudnnBackendDescriptor_t> descriptors;
  for (const Descriptor* const value : values) descriptors.push_back(value->get());
  set(attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, descriptors);
}

void Descriptor::finalize() { check(library()->finalize(descriptor_), "finalize " + name_); }

void Descriptor::fill(cudnnBackendAttributeName_t attribute, std::vector<Descriptor>& descriptors) const {
  std::vector<cudnnBackendDescriptor_t> raw;
  for (const Descriptor& descriptor : descriptors) raw.push_back(descriptor.get());
  const std::size_t filled = fill(attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, raw);
  while (descriptors.size() > filled) descriptors.pop_back();
}

void Descriptor::set_array(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, std::int64_t count,
                           const void* values) {
  const cudnnStatus_t status = library()->set_attribute(descriptor_, attribute, type, count, values);
  if (status != CUDNN_STATUS_SUCCESS) check(status, cat("set attribute ", static_cast<int>(attribute), " of ", name_));
}

std::int64_t Descriptor::get_array(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type,
                                   std::int64_t most, void* values) const {
  std::int64_t count = 0;
  const cudnnStatus_t status = library()->get_attribute(descriptor_, attribute, type, most, &count, values);
  if (status != CUDNN_STATUS_SUCCESS) check(status, cat("read attribute ", static_cast<int>(attribute), " of ", name_));
  return count;
}

}  // namespace castor::cudnn
