// What the commands of `castor ckpt` share on a terminal: a bar over bytes, columns, and the words for options that
// several of them take.
//
// Delicate: the bar goes to standard error, and only to a terminal, so that standard output holds results alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/console.h"
#include "core/base/dtype.h"
#include "formats/checkpoint_list.h"
#include "formats/weight_list.h"

namespace castor::strategy {

/// Counts bytes on a bar and stops the work when a stop was asked for.
class BytesBar {
 public:
  /// Starts the clock.
  BytesBar(std::string label, std::uint64_t total);

  /// Shows that `bytes` of the total are done. Throws Stopped once a stop was asked for.
  void update(std::uint64_t bytes);
  /// `update` as a function; refers to this object.
  formats::BytesProgress progress();
  /// "3.20 GiB, 1.40 GB/s": what was done since the construction.
  std::string rate_text(std::uint64_t bytes) const;

 private:
  std::unique_ptr<ProgressBar> bar_;
  std::chrono::steady_clock::time_point began_;
};

/// Rows as columns, each as wide as its widest cell (at most 60), two spaces apart and indented by two; the first row
/// may be a heading.
std::string columns_text(const std::vector<std::vector<std::string>>& rows);

/// "f32[2,3]".
std::string tensor_text(DType dtype, const std::vector<std::int64_t>& shape);

/// The dtype that --dtype names; nothing for "keep", or if it was not given.
std::optional<DType> chosen_dtype(const std::optional<std::string>& choice);

/// Prints notes of a source, one a line.
void print_notes(const std::vector<std::string>& notes, std::ostream& out);
/// Prints what a list of weights left out, and how many values a conversion lost.
void print_left_out(const formats::WeightList& list, std::uint64_t overflowed, std::ostream& out);

/// True if `path` is a folder of checkpoints, torn ones included, and none itself; `list` is filled then.
bool is_run_folder(const std::string& path, formats::CheckpointList& list);

}  // namespace castor::strategy
