// cuDNN's C interface as this process found it: opened by name when attention first asks for it, so that programs start
// on machines without it, and a descriptor of its graph interface that cleans up after itself.
//
// Delicate: the headers of the build and the library of the machine may differ in version. Only names that the oldest
// version taken has are used, and the library is asked which one it is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <cudnn_graph.h>

#include "core/base/error.h"

namespace castor::cudnn {

/// The functions that are used; all set, and `version` at least kOldestCudnn.
struct Library {
  decltype(&cudnnGetVersion) get_version = nullptr;
  decltype(&cudnnGetErrorString) get_error_string = nullptr;
  decltype(&cudnnGetLastErrorString) get_last_error_string = nullptr;
  decltype(&cudnnCreate) create = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor = nullptr;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor = nullptr;
  decltype(&cudnnBackendSetAttribute) set_attribute = nullptr;
  decltype(&cudnnBackendGetAttribute) get_attribute = nullptr;
  decltype(&cudnnBackendFinalize) finalize = nullptr;
  decltype(&cudnnBackendExecute) execute = nullptr;
  std::size_t version = 0;  ///< 91900 for 9.19.0
};

/// The oldest that was tried: 9.14.0. Older ones are known for wrong results (9.10.0).
inline constexpr std::size_t kOldestCudnn = 91400;

/// The machine's library, or nullptr with the reason and what to do in `library_refusal`. Opened by the first call;
/// safe from any thread.
const Library* library();
const std::string& library_refusal();

/// "9.19.0".
std::string version_text(std::size_t version);

/// cuDNN cannot do what was asked: which step said so, and its words. Never leaves this file's users.
class Refusal : public Error {
 public:
  using Error::Error;
};

/// Throws Refusal unless `status` is a success. `what` as in "finalize the plan".
void check(cudnnStatus_t status, const std::string& what);

/// One descriptor of cuDNN's graph interface. Throws Refusal.
class Descriptor {
 public:
  Descriptor(cudnnBackendDescriptorType_t type, std::string name);
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor& operator=(Descriptor&&) = delete;

  template <class T>
  void set(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, const T& value) {
    set_array(attribute, type, 1, &value);
  }
  template <class T>
  void set(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, const std::vector<T>& values) {
    set_array(attribute, type, static_cast<std::int64_t>(values.size()), values.data());
  }
  void set(cudnnBackendAttributeName_t attribute, const Descriptor& value) {
    set(attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, value.get());
  }
  void set(cudnnBackendAttributeName_t attribute, const std::vector<const Descriptor*>& values);
  void finalize();

  /// How many values there are.
  std::int64_t count(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type) const {
    return get_array(attribute, type, 0, nullptr);
  }
  template <class T>
  void read(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, T& value) const {
    get_array(attribute, type, 1, &value);
  }
  /// At most as many as there is room for; returns how many were written.
  template <class T>
  std::size_t fill(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type,
                   std::vector<T>& values) const {
    const auto most = static_cast<std::int64_t>(values.size());
    return static_cast<std::size_t>(std::min(most, get_array(attribute, type, most, values.data())));
  }
  /// The library fills in descriptors of ours, of which it needs no more than it returns.
  void fill(cudnnBackendAttributeName_t attribute, std::vector<Descriptor>& descriptors) const;

  cudnnBackendDescriptor_t get() const { return descriptor_; }

 private:
  void set_array(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, std::int64_t count,
                 const void* values);
  std::int64_t get_array(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, std::int64_t most,
                         void* values) const;

  std::string name_;
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

}  // namespace castor::cudnn
