// The CPU's implementation of Backend. Kept in a header of its own so that tests can derive a fake second device from
// it.
#pragma once

#include "core/device/backend.h"

namespace castor {

/// Host memory; copies happen at once, events are empty.
class CpuBackend : public Backend {
 public:
  void* allocate(std::size_t bytes) override;
  void deallocate(void* data, std::size_t bytes) override;
  void copy_within(void* to, const void* from, std::size_t bytes) override;
  void copy_from_host(void* to, const void* from, std::size_t bytes) override;
  void copy_to_host(void* to, const void* from, std::size_t bytes) override;
  void fill_zero(void* data, std::size_t bytes) override;
  void* stream() override;
  Event record() override;
  void wait(const Event& event) override;
  void synchronize() override;
  bool has_passed(const Event&) override { return true; }
  void wait_on_host(const Event&) override {}
  std::unique_ptr<SideQueue> open_queue() override { return nullptr; }
  std::size_t total_bytes() const override;

 protected:
  /// As `allocate`, never from the heap that other processes can read.
  static void* allocate_private(std::size_t bytes);
};

}  // namespace castor
