// RecordingScope: a device records what it is given (backend.h) as long as this lives, also where what it is given
// throws on the way.
#pragma once

#include <memory>

#include "core/base/error.h"
#include "core/device/backend.h"

namespace castor {

class RecordingScope {
 public:
  explicit RecordingScope(Backend& backend) : backend_(backend), has_begun_(backend.begin_recording()) {}
  RecordingScope(const RecordingScope&) = delete;
  RecordingScope& operator=(const RecordingScope&) = delete;
  ~RecordingScope() {
    if (is_over_ || !has_begun_) return;
    try {
      backend_.end_recording();
    } catch (const DeviceError&) {  // what ended the work is on its way already
    }
  }
  /// False: this device records nothing, and does what it is given.
  bool has_begun() const { return has_begun_; }
  /// Throws DeviceError where something could not be recorded.
  std::unique_ptr<Recording> end() {
    is_over_ = true;
    return backend_.end_recording();
  }

 private:
  Backend& backend_;
  bool has_begun_, is_over_ = false;
};

}  // namespace castor
