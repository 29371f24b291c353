// A checkpoint's tensors as streams. Delicate: a stream reads whole digest blocks of one slice at a time, whatever it
// is asked for, since only whole blocks can be checked; bytes are handed out after their check.
#include <algorithm>
#include <cstring>

#include "formats/tensor_source.h"

namespace castor::formats {
namespace {

constexpr std::uint64_t kWindowBytes = 16 * kDigestBlockBytes;

class SliceStream {
 public:
  SliceStream(std::shared_ptr<const Checkpoint> checkpoint, const LogicalTensor& tensor)
      : checkpoint_(std::move(checkpoint)), tensor_(&tensor) {}

  void operator()(std::uint64_t offset, std::span<std::byte> out) {
    while (!out.empty()) {
      if (offset < begin_ || offset >= begin_ + window_.size()) fill(offset);
      const std::uint64_t at = offset - begin_;
      const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), window_.size() - at));
      std::memcpy(out.data(), window_.data() + at, count);
      out = out.subspan(count);
      offset += count;
    }
  }

 private:
  void fill(std::uint64_t offset) {
    const std::uint64_t element = dtype_size(tensor_->dtype);
    const auto& slices = tensor_->slices;
    const auto after = std::upper_bound(slices.begin(), slices.end(), static_cast<std::int64_t>(offset / element),
                                        [](std::int64_t at, const TensorSlice& slice) { return at < slice.offset; });
    if (after == slices.begin() || offset >= tensor_->bytes()) {
      throw ShapeError(
          cat("read checkpoint: tensor ", tensor_->name, " has ", tensor_->bytes(), " bytes, asked for byte ", offset));
    }
    const TensorSlice& slice = *(after - 1);
    const std::uint64_t slice_begin = static_cast<std::uint64_t>(slice.offset) * element;
    const std::uint64_t slice_bytes = static_cast<std::uint64_t>(slice.count) * element;
    const std::uint64_t from = (offset - slice_begin) / kDigestBlockBytes * kDigestBlockBytes;
    begin_ = slice_begin + from;
    std::vector<std::byte> next = std::move(window_);  // an exception leaves no window
    window_.clear();
    next.resize(static_cast<std::size_t>(std::min(kWindowBytes, slice_bytes - from)));
    checkpoint_->read(*tensor_, static_cast<std::int64_t>(begin_ / element), next);
    window_ = std::move(next);
  }

  std::shared_ptr<const Checkpoint> checkpoint_;
  const LogicalTensor* tensor_;
  std::uint64_t begin_ = 0;
  std::vector<std::byte> window_;
};

}  // namespace

TensorSource checkpoint_source(std::shared_ptr<const Checkpoint> checkpoint) {
  TensorSource source;
  source.path = checkpoint->folder();
  source.kind = "checkpoint";
  source.has_roles = true;
  for (const LogicalTensor& tensor : checkpoint->manifest().tensors) {
    source.tensors.push_back(
        {tensor.name, tensor.role, tensor.dtype, tensor.shape, [checkpoint, &tensor] {
           // A std::function must be copyable; copies share the window.
           auto stream = std::make_shared<SliceStream>(checkpoint, tensor);
           return ByteSource([stream](std::uint64_t offset, std::span<std::byte> out) { (*stream)(offset, out); });
         }});
  }
  source.aliases = checkpoint->manifest().aliases;
  for (const CheckpointFile& file : checkpoint->manifest().files) {
    source.files.push_back(join_path(checkpoint->folder(), file.name));
  }
  return source;
}

}  // namespace castor::formats
