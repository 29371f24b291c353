// DiskTier: tensors whose bytes live in a scratch file and come to host memory one block at a time, read ahead of their
// use and written behind it.
//
// Source: Rajbhandari et al. 2021, arXiv:2104.07857, section 5 (states on NVMe, streamed through a few host buffers). A
// tensor's storage has a pager: whoever takes its address gets the whole block it belongs to, so the optimizer, masters
// and clipping know nothing of files; those who stream (checkpoints) read and write past the blocks. Memory is three
// times the largest block, whatever is in the file. Delicate:
//  * One block has addresses at a time. Using another takes the first one's away and writes it back, so an op may use
//    tensors of one block only; states of a chunk share one.
//  * Which block comes next is guessed from the last two: a step goes up through them and starts again below.
//  * An address may be written through, so every block that was used is written.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "autograd/optim/state_home.h"
#include "core/base/scratch_file.h"

namespace castor::dist {

struct DiskOptions {
  std::string directory;                    ///< where the scratch file is made
  Device host = kCpu;                       ///< whose memory blocks come to; on meta nothing is read or written
  Category category = Category::optimizer;  ///< of that memory
  std::string what = "optimizer states";    ///< for errors: "optimizer states of chunk 3 from ..."
  FileSystem* files = &posix_file_system();
};

/// What moved, since the start.
struct DiskTraffic {
  std::int64_t read_bytes = 0;
  std::int64_t written_bytes = 0;
  std::int64_t blocks = 0;  ///< blocks that were brought to memory
  std::int64_t ahead = 0;   ///< of these, asked for ahead of their use

  DiskTraffic& operator+=(const DiskTraffic& other) {
    read_bytes += other.read_bytes;
    written_bytes += other.written_bytes;
    blocks += other.blocks;
    ahead += other.ahead;
    return *this;
  }
};

class DiskTier {
 public:
  explicit DiskTier(const DiskOptions& options);
  /// The tensors lose their bytes.
  ~DiskTier();
  DiskTier(const DiskTier&) = delete;
  DiskTier& operator=(const DiskTier&) = delete;

  /// A home of states that come and go together, called `label` in errors; it lives as long as this.
  autograd::StateHome& add_block(const std::string& label);

  /// Bytes of the file; fixed at the first use.
  std::int64_t file_bytes() const;
  /// Bytes of host memory in use for blocks.
  std::int64_t buffer_bytes() const;
  /// Takes memory and the file's room now: the errors of a full disk come here and not at the first use.
  void open();
  /// Transfers bypass the page cache; false before open().
  bool is_direct() const { return file_ != nullptr && file_->is_direct(); }
  DiskTraffic traffic() const;

 private:
  struct Block;
  struct Buffer {
    Tensor memory;
    std::byte* start = nullptr;     // aligned
    Block* block = nullptr;         // whose bytes are there or arriving
    Block* before = nullptr;        // whose bytes must have been written first
    ScratchFile::Transfer arrival;  // a read that nobody has waited for
    std::uint64_t stamp = 0;        // of its last use
  };
  /// Told bytes of a block and where they begin in what is streamed; true if it changed them.
  using Change = std::function<bool(std::span<std::byte> bytes, std::uint64_t at)>;

  void open_locked();
  void bring(Block& block);
  void read_ahead(const Block& block);
  Buffer& oldest_buffer();
  void begin_read(Block& block);
  void begin_write(Buffer& buffer);
  void settle(Block& block);
  void wait_for_write(Block& block);
  bool read(Block& block, std::uint64_t offset, std::span<std::byte> out);
  bool write(Block& block, std::uint64_t offset, std::span<const std::byte> data);
  void stream(Block& block, std::uint64_t offset, std::size_t count, const Change& change);
  template <class Action>
  static void named(const char* doing, const Block& block, const Action& action);

  DiskOptions options_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::array<Buffer, 3> buffers_;  // used, being written, being read
  AlignedBuffer window_;           // what streams pass through
  std::unique_ptr<ScratchFile> file_;
  bool is_open_ = false;
  Buffer* used_ = nullptr;           // the one whose block has addresses
  std::optional<std::size_t> last_;  // block that was used last
  std::uint64_t stamp_ = 0;
  DiskTraffic traffic_;
};

}  // namespace castor::dist
