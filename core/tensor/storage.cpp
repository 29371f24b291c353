// Storage's life: allocate, point, drop. The history keeps the last few reasons; they cost a pointer each.
#include "core/tensor/storage.h"

#include "core/base/error.h"

namespace castor {

Storage::Storage(std::size_t bytes, Device device, bool allocate_now) : device_(device), bytes_(bytes) {
  if (allocate_now) allocate("allocated");
}

Storage::Storage(std::size_t bytes, Device device) : device_(device), bytes_(bytes) {
  block_ = allocator(device_).allocate(bytes_);
  data_ = CachingAllocator::data(block_);
}

std::shared_ptr<Storage> Storage::make_empty(std::size_t bytes, Device device) {
  return std::shared_ptr<Storage>(new Storage(bytes, device, false));
}

Storage::~Storage() {
  try {
    release();
  } catch (const DeviceError&) {
    // The device is lost and the bytes with it; the next call on it says so.
  }
}

void Storage::release() {
  for (const Event& event : uses_) backend(device_).wait(event);
  uses_.clear();
  if (block_ != nullptr) allocator(device_).release(block_);
  block_ = nullptr;
  owner_.reset();
  data_ = nullptr;
}

void Storage::note(const char* reason) {
  constexpr std::size_t kKept = 8;
  if (history_.size() == kKept) history_.erase(history_.begin());
  history_.push_back(reason);
}

void Storage::point_to(void* data, std::shared_ptr<void> owner, Event ready, const char* reason) {
  release();
  if (ready) backend(device_).wait(ready);
  data_ = data;
  owner_ = std::move(owner);
  note(reason);
}

void Storage::drop(const char* reason) {
  release();
  note(reason);
}

void Storage::allocate(const char* reason) {
  release();
  block_ = allocator(device_).allocate(bytes_);
  data_ = CachingAllocator::data(block_);
  note(reason);
}

void Storage::read(std::size_t offset, std::span<std::byte> out) const {
  if (out.empty() || (pager_ != nullptr && pager_->read(offset, out))) return;
  backend(device_).copy_to_host(out.data(), static_cast<const std::byte*>(data()) + offset, out.size());
}

void Storage::write(std::size_t offset, std::span<const std::byte> data) const {
  if (data.empty() || (pager_ != nullptr && pager_->write(offset, data))) return;
  backend(device_).copy_from_host(static_cast<std::byte*>(this->data()) + offset, data.data(), data.size());
}

void Storage::set_category(Category category) {
  if (block_ != nullptr) allocator(device_).set_category(block_, category);
}

void Storage::record_use() {
  if (Event event = backend(device_).record()) uses_.push_back(std::move(event));
}

void Storage::throw_no_data() const {
  std::string text = cat("storage of ", bytes_, " bytes on ", device_, " has no bytes at its use; history:");
  for (const char* reason : history_) text += cat(' ', reason, ',');
  text.back() = '.';
  throw DeviceError(text);
}

}  // namespace castor
