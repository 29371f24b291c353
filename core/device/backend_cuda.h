// The CUDA implementation of Backend, behind a factory, so that nobody who wants a GPU needs CUDA's headers. Linked
// only in builds with CUDA; backends.cpp calls it where kHasCuda is true.
//
// Delicate: everything goes through one compute stream a device, in the order of the host's calls. That order is what
// makes the caching allocator right without any waiting: a block that is freed and handed out again is written by work
// behind the work that read it. Bytes that another stream touches need the events of `record` and `wait` before they
// change hands.
#pragma once

#include <memory>

#include "core/device/backend.h"

namespace castor {

/// GPUs that this process can use; 0 without a driver or without a GPU.
int cuda_device_count();

/// The backend of GPU `ordinal`, with a compute stream of its own.
///   allocate  cudaMalloc; nullptr when the device has none left, so that the allocator can give its cache back
///   events    hold a cudaEvent_t (`Event::get`), without timing, from a pool;
///             an event of another stream may be waited on
///   copies    in stream order; `copy_from_host` returns when its source may change again,
///             `copy_within` needs disjoint ranges
///   stream    a cudaStream_t; asking for it makes the device the calling thread's current one,
///             as a launch requires
/// Calls are safe from any thread. Throws DeviceError, with CUDA's own words and what to do, when there is no such
/// device; so does every call once the device is lost, except `deallocate`, which leaves that to the next one.
std::unique_ptr<Backend> make_cuda_backend(int ordinal);

/// Host memory, page-locked: what GPUs copy from and to beside their computing. `allocate` returns nullptr where the
/// system locks no more.
std::unique_ptr<Backend> make_page_locked_backend();

}  // namespace castor
