// Merging axes, and an odometer over the runs that remain. Delicate: everything is counted in bytes, an element being
// the innermost axis, so that odd ranges need no case of their own. Three ways to the bytes, by the view's shape: long
// runs go straight to the caller; a moderate extent is read once and gathered from; of a large transposed view, a slab
// of result rows is filled at a time, by strips that are contiguous in the storage.
#include "formats/strided_source.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "core/base/error.h"

namespace castor::formats {
namespace {

constexpr std::uint64_t kSlabBytes = std::uint64_t{8} << 20;
constexpr std::uint64_t kAheadBytes = std::uint64_t{1} << 20;
// Longer runs, and steps, are read one by one instead of through a window or by strips.
constexpr std::uint64_t kLongRunBytes = std::uint64_t{16} << 10;
constexpr std::uint64_t kLongStepBytes = std::uint64_t{4} << 10;

struct Axis {
  std::uint64_t size;
  std::uint64_t stride;  // bytes
};

// Index `number` of a space of axes, the last one fastest, and where it lies.
class Odometer {
 public:
  Odometer(std::span<const Axis> axes, std::uint64_t number) : axes_(axes), index_(axes.size()) {
    for (std::size_t i = axes.size(); i-- > 0;) {
      index_[i] = number % axes[i].size;
      number /= axes[i].size;
      place_ += index_[i] * axes[i].stride;
    }
  }
  std::uint64_t place() const { return place_; }
  void advance() {
    for (std::size_t i = axes_.size(); i-- > 0;) {
      place_ += axes_[i].stride;
      if (++index_[i] < axes_[i].size) return;
      place_ -= axes_[i].size * axes_[i].stride;
      index_[i] = 0;
    }
  }

 private:
  std::span<const Axis> axes_;
  std::vector<std::uint64_t> index_;
  std::uint64_t place_ = 0;
};

class StridedReader {
 public:
  StridedReader(const StridedBytes& view, ByteSource read);
  void operator()(std::uint64_t offset, std::span<std::byte> out);

 private:
  void merge_axes();
  void plan_slabs();
  void read_slabs(std::uint64_t offset, std::span<std::byte> out);
  void fill_slab(std::uint64_t block, std::uint64_t row, std::uint64_t rows);
  void read_runs(std::uint64_t offset, std::span<std::byte> out);
  void read_run(std::uint64_t from, std::span<std::byte> out);

  bool fits() const { return extent_ <= kMaxStridedWindowBytes; }

  ByteSource read_;
  std::uint64_t begin_;
  std::vector<Axis> axes_;  // outer ones; runs of run_ bytes inside
  std::uint64_t run_;
  std::uint64_t total_;
  std::uint64_t extent_ = 0;        // bytes from the first to past the last
  std::uint64_t near_ = 0;          // bytes that the inner axes take short steps over: what to read ahead
  std::uint64_t window_begin_ = 0;  // of the extent, or of the result for slabs
  std::vector<std::byte> window_;

  // Slabs: rows along row_axis_, which the storage runs along, of row_bytes_ each. None if slab_rows_ is 0.
  std::size_t row_axis_ = 0;
  std::uint64_t row_bytes_ = 0;
  std::uint64_t slab_rows_ = 0;
  std::vector<std::byte> strip_;
};

StridedReader::StridedReader(const StridedBytes& view, ByteSource read)
    : read_(std::move(read)), begin_(view.begin), run_(view.item_bytes), total_(view.item_bytes) {
  for (std::size_t i = 0; i < view.shape.size(); ++i) {
    const auto size = static_cast<std::uint64_t>(view.shape[i]);
    if (size == 0) {
      total_ = 0;
      axes_.clear();
      return;
    }
    total_ *= size;
    if (size != 1) axes_.push_back({size, static_cast<std::uint64_t>(view.strides[i]) * view.item_bytes});
  }
  extent_ = run_;
  for (const Axis& axis : axes_) extent_ += (axis.size - 1) * axis.stride;
  merge_axes();
  near_ = run_;
  for (std::size_t i = axes_.size(); i-- > 0 && axes_[i].stride < kLongStepBytes;) {
    near_ += (axes_[i].size - 1) * axes_[i].stride;
  }
  near_ = std::min(near_, kAheadBytes);
  if (!fits()) plan_slabs();
}

// An axis that steps over just what is inside it becomes part of it.
void StridedReader::merge_axes() {
  for (std::size_t i = axes_.size(); i-- > 1;) {
    if (axes_[i - 1].stride != axes_[i].stride * axes_[i].size) continue;
    axes_[i - 1] = {axes_[i - 1].size * axes_[i].size, axes_[i].stride};
    axes_.erase(axes_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  if (!axes_.empty() && axes_.back().stride == run_) {
    run_ *= axes_.back().size;
    axes_.pop_back();
  }
}

// Short runs far from each other, while an outer axis takes short steps: its rows are read together.
void StridedReader::plan_slabs() {
  if (axes_.size() < 2 || run_ >= kLongRunBytes || axes_.back().stride < kLongStepBytes) return;
  const auto nearest = std::ranges::min_element(axes_, {}, &Axis::stride);
  if (nearest->stride >= kLongStepBytes) return;
  row_bytes_ = run_;
  for (auto axis = nearest + 1; axis != axes_.end(); ++axis) {
    if (row_bytes_ > kMaxStridedWindowBytes / 16 / axis->size) return;
    row_bytes_ *= axis->size;
  }
  row_axis_ = static_cast<std::size_t>(nearest - axes_.begin());
  slab_rows_ = std::min(nearest->size, std::max<std::uint64_t>(kSlabBytes / row_bytes_, 16));
  if (nearest->stride > 0) slab_rows_ = std::min(slab_rows_, kAheadBytes / nearest->stride);
}

void StridedReader::operator()(std::uint64_t offset, std::span<std::byte> out) {
  if (offset > total_ || out.size() > total_ - offset) {
    throw ShapeError(cat("read a strided view: it has ", total_, " bytes, asked for ", out.size(), " from ", offset));
  }
  if (out.empty()) return;
  if (slab_rows_ > 0) return read_slabs(offset, out);
  read_runs(offset, out);
}

void StridedReader::read_slabs(std::uint64_t offset, std::span<std::byte> out) {
  const std::uint64_t block_bytes = axes_[row_axis_].size * row_bytes_;
  while (!out.empty()) {
    if (window_.empty() || offset < window_begin_ || offset >= window_begin_ + window_.size()) {
      const std::uint64_t block = offset / block_bytes;
      const std::uint64_t row = offset % block_bytes / row_bytes_ / slab_rows_ * slab_rows_;
      fill_slab(block, row, std::min(slab_rows_, axes_[row_axis_].size - row));
      window_begin_ = block * block_bytes + row * row_bytes_;
    }
    const std::uint64_t from = offset - window_begin_;
    const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(window_.size() - from, out.size()));
    std::memcpy(out.data(), window_.data() + from, count);
    out = out.subspan(count);
    offset += count;
  }
}

// Fills the window with rows [row, row + rows) of a block: for every run of a row, a strip with the same run of all.
void StridedReader::fill_slab(std::uint64_t block, std::uint64_t row, std::uint64_t rows) {
  const std::span<const Axis> axes(axes_);
  const Axis& along = axes[row_axis_];
  const std::uint64_t base = Odometer(axes.first(row_axis_), block).place() + row * along.stride;
  std::vector<std::byte> slab = std::move(window_);  // which stays empty if reading throws
  slab.resize(static_cast<std::size_t>(rows * row_bytes_));
  strip_.resize(static_cast<std::size_t>((rows - 1) * along.stride + run_));
  Odometer inner(axes.subspan(row_axis_ + 1), 0);
  for (std::uint64_t at = 0; at < row_bytes_; at += run_, inner.advance()) {
    read_(begin_ + base + inner.place(), strip_);
    for (std::uint64_t i = 0; i < rows; ++i) {
      std::memcpy(slab.data() + i * row_bytes_ + at, strip_.data() + i * along.stride, run_);
    }
  }
  window_ = std::move(slab);
}

void StridedReader::read_runs(std::uint64_t offset, std::span<std::byte> out) {
  Odometer runs(axes_, offset / run_);
  std::uint64_t within = offset % run_;
  while (true) {
    const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(run_ - within, out.size()));
    read_run(runs.place() + within, out.first(count));
    out = out.subspan(count);
    if (out.empty()) return;
    within = 0;
    runs.advance();
  }
}

// Fills `out`, a piece of a run, from byte `from` of the view's extent.
void StridedReader::read_run(std::uint64_t from, std::span<std::byte> out) {
  const bool alone = axes_.empty() || out.size() >= kLongRunBytes || (!fits() && axes_.back().stride >= kLongStepBytes);
  if (alone) {
    read_(begin_ + from, out);
    return;
  }
  if (from < window_begin_ || from + out.size() > window_begin_ + window_.size()) {
    window_begin_ = fits() ? 0 : from;
    std::vector<std::byte> window = std::move(window_);  // which stays empty if reading throws
    window.resize(static_cast<std::size_t>(fits() ? extent_ : std::min(near_, extent_ - from)));
    read_(begin_ + window_begin_, window);
    window_ = std::move(window);
  }
  std::memcpy(out.data(), window_.data() + (from - window_begin_), out.size());
}

}  // namespace

ByteSource strided_source(const StridedBytes& view, ByteSource read) {
  // A std::function must be copyable; copies share the window.
  auto reader = std::make_shared<StridedReader>(view, std::move(read));
  return [reader](std::uint64_t offset, std::span<std::byte> out) { (*reader)(offset, out); };
}

}  // namespace castor::formats
