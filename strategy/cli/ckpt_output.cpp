// Bars and columns.
#include "strategy/cli/ckpt_output.h"

#include <algorithm>
#include <iomanip>
#include <ostream>
#include <sstream>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/file_error.h"
#include "core/base/interrupt.h"
#include "core/device/caching_allocator.h"
#include "formats/array_shape.h"
#include "formats/manifest.h"

namespace castor::strategy {

BytesBar::BytesBar(std::string label, std::uint64_t total) : began_(std::chrono::steady_clock::now()) {
  Console& console = Console::standard_error();
  // Counted in MiB, as nobody reads longer numbers.
  if (console.is_terminal()) {
    bar_ = std::make_unique<ProgressBar>(console, std::move(label), static_cast<std::int64_t>(total >> 20));
  }
}

void BytesBar::update(std::uint64_t bytes) {
  if (stop_requested()) throw Stopped("stopped");
  if (bar_ != nullptr) bar_->update(static_cast<std::int64_t>(bytes >> 20), cat("MiB  ", rate_text(bytes)));
}

formats::BytesProgress BytesBar::progress() {
  return [this](std::uint64_t bytes) { update(bytes); };
}

std::string BytesBar::rate_text(std::uint64_t bytes) const {
  const double seconds = seconds_since(began_);
  std::ostringstream out;
  out << bytes_text(bytes) << ", " << std::fixed << std::setprecision(2)
      << static_cast<double>(bytes) / std::max(seconds, 1e-6) / 1e9 << " GB/s";
  return out.str();
}

std::string columns_text(const std::vector<std::vector<std::string>>& rows) {
  constexpr std::size_t kWidest = 60;
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], std::min(row[i].size(), kWidest));
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line = " ";
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += " " + row[i];
      if (i + 1 < row.size()) line.append(widths[i] - std::min(row[i].size(), widths[i]) + 1, ' ');
    }
    out += line + "\n";
  }
  return out;
}

std::string tensor_text(DType dtype, const std::vector<std::int64_t>& shape) {
  return cat(dtype, formats::shape_text(shape));
}

std::optional<DType> chosen_dtype(const std::optional<std::string>& choice) {
  if (!choice || *choice == "keep") return std::nullopt;
  return dtype_from_name(*choice);
}

void print_notes(const std::vector<std::string>& notes, std::ostream& out) {
  for (const std::string& note : notes) out << note << "\n";
}

void print_left_out(const formats::WeightList& list, std::uint64_t overflowed, std::ostream& out) {
  if (!list.left_out.empty()) {
    out << "left out by the map: " << list.left_out.size() << " tensors, as " << quote_name(list.left_out.front())
        << "\n";
  }
  for (const auto& [role, count] : list.other_roles) {
    if (role == "master" && list.masters > 0) continue;
    out << "not taken: " << count << " tensors of the role " << role << "\n";
  }
  if (overflowed > 0) {
    out << "warning: " << overflowed << " finite values are too large for the dtype and became infinite\n";
  }
}

bool is_run_folder(const std::string& path, formats::CheckpointList& list) {
  if (!is_directory(path) || exists(join_path(path, formats::kManifestName))) return false;
  list = formats::list_checkpoints(path);
  return !list.checkpoints.empty() || !list.torn.empty();
}

}  // namespace castor::strategy
