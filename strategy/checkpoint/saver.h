// Writes checkpoints, now or in the background, one at a time.
//
// Delicate: two saves never overlap; a background one that failed is reported by whoever calls next, so that no failure
// is ever silent. A save that fails leaves the folder as a reader would have found it before. A folder that is no
// checkpoint, nor what an interrupted save left, is refused with all that is in it.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/base/file_stream.h"
#include "strategy/checkpoint/save_group.h"
#include "strategy/checkpoint/snapshot.h"

namespace castor::strategy {

/// One save.
struct SaveRequest {
  std::string folder;
  std::vector<StateTensor> tensors;
  std::map<std::string, std::string> aliases;
  std::string state;        ///< state.json's text
  std::string config_yaml;  ///< config.yaml's; empty: none
  bool asynchronous = false;
  dist::Comm* ranks = nullptr;  ///< who saves the other parts, in a group for nothing else; null: this process has all
  std::function<void(const std::string& folder)> committed;  ///< on the main rank
};

/// How an asynchronous save keeps the state while training goes on.
enum class CopyMode {
  whole,     ///< a copy of everything, at once
  on_write,  ///< tensors are written in place and copied only just before they change
};

class CheckpointSaver {
 public:
  explicit CheckpointSaver(FileSystem& files = posix_file_system()) : files_(files) {}
  /// Waits; a failure that nobody asked for is logged.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  /// What asynchronous saves of `bytes` do on a host with so much free memory.
  static CopyMode copy_mode(std::uint64_t bytes, std::uint64_t free_bytes);
  /// The same of this rank's share of this host's memory that is free now.
  static CopyMode copy_mode(std::uint64_t bytes);
  /// Prepares asynchronous saves of `bytes`: memory for copies is allocated and touched now and not in the first save.
  /// The mode is chosen here, or at the first asynchronous save, and kept.
  void reserve(std::uint64_t bytes);
  /// As reserve, in a given mode and with so much memory for copies: for tests.
  void reserve(CopyMode mode, std::uint64_t room_bytes);

  /// Saves. Waits for the one before first and throws its failure, if any, without starting.
  /// Throws IoError, FormatError, ShapeError as formats/checkpoint_writer.h does, and IoError (EEXIST) for a folder
  /// that is refused, unless request.asynchronous.
  void save(SaveRequest request);
  /// Returns when nothing is being written. Throws the failure of the last background save, once.
  void wait();
  /// The same, but logs that failure: for whoever goes.
  void finish() noexcept;
  /// To be called before training changes a tensor; free unless a background save still needs it.
  void before_change(const Tensor& tensor) {
    if (snapshot_ != nullptr) snapshot_->before_change(tensor);
  }

 private:
  void write(const SaveRequest& request, Snapshot* snapshot);
  std::uint64_t next_number(const std::string& directory);

  FileSystem& files_;
  AlignedBuffer room_;
  bool is_reserved_ = false;
  std::map<std::string, std::uint64_t> last_number_;  // by the folder that holds the checkpoints
  std::unique_ptr<Snapshot> snapshot_;
  std::thread writer_;
  std::exception_ptr failure_;
};

}  // namespace castor::strategy
