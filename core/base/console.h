// The terminal as log lines and a status line share it.
//
// A progress bar lives on the last row and is redrawn in place; a log line written meanwhile must come out whole, above
// it. So everything a run prints while it trains goes through one Console: it wipes the status, writes the line, draws
// the status again, as one write under one lock. Where the output is no terminal there is no cursor to move: then a
// status is printed as a plain line, and only now and then.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

namespace castor {

/// A terminal, pipe or file that takes whole lines and, on a terminal, one status line. All members may be called from
/// any thread. A failed write (closed pipe, full disk) is dropped: a run is not lost because nobody reads its output.
class Console {
 public:
  /// What kind of output a console is.
  struct Options {
    bool terminal = false;             ///< redraw the status in place
    int width = 0;                     ///< columns; 0 asks the terminal at each redraw
    double redraw_seconds = 0.1;       ///< least time between two redraws of the status on a terminal
    double plain_status_seconds = 30;  ///< least time between two status lines elsewhere; 0 prints each
  };

  /// Writes to an open file descriptor, which stays the caller's.
  Console(int descriptor, const Options& options);
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;
  ~Console();

  /// The process's standard output; a terminal if it is one and TERM is not "dumb".
  static Console& standard_output();
  /// The process's standard error, in the same way.
  static Console& standard_error();

  /// Writes `text` and a newline above the status line. Text of several lines stays together.
  void write_line(std::string_view text);
  /// Writes `text` as it is, without a newline, after wiping the status line: for output that grows word by word.
  void write_text(std::string_view text);
  /// Sets the status line. It is cut to the width of the terminal; calls that come too soon are kept back, and only the
  /// latest is drawn.
  void set_status(std::string_view text);
  /// Ends the status line. On a terminal its last text stays as a finished row if `keep`, and vanishes otherwise.
  void end_status(bool keep);

  bool is_terminal() const { return options_.terminal; }
  /// Columns, 80 where unknown.
  int width() const;

 private:
  void write_all(std::string_view bytes);
  void append_status(std::string& out) const;

  int descriptor_;
  Options options_;
  std::mutex mutex_;
  std::string status_;      ///< latest text, empty when there is none
  bool drawn_ = false;      ///< a status stands on the last row
  bool withheld_ = false;   ///< status_ is newer than what stands there
  bool was_shown_ = false;  ///< last_shown_ is set
  std::chrono::steady_clock::time_point last_shown_;
};

/// One bar on a console: `train [#####.....] 512/1000  0:00:41 left  loss 2.31`.
/// The estimate of the time left assumes that the rest goes as the part done since construction.
class ProgressBar {
 public:
  /// Starts the clock.
  ///   label   what is counted; stands at the left
  ///   total   the count at which the bar is full; 0 or less draws no bar and no estimate
  ///   start   the count already done, as after a resume
  ProgressBar(Console& console, std::string label, std::int64_t total, std::int64_t start = 0);
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  /// Wipes the bar unless `finish` was called.
  ~ProgressBar();

  /// Shows that `done` of the total is done. `details` stand at the right (loss, rate, memory) and are cut first when
  /// the terminal is narrow.
  void update(std::int64_t done, std::string_view details);
  /// Leaves the bar as a finished row.
  void finish();

 private:
  Console& console_;
  std::string label_;
  std::int64_t total_;
  std::int64_t start_;
  std::chrono::steady_clock::time_point began_;
  bool finished_ = false;
};

/// Seconds as "0:00:41", "1:02:03" or "2 days, 3:04:05"; "?" for negative or non-finite values.
std::string format_duration(double seconds);

/// The bar itself, `[####....]`, `width` columns with the brackets (at least 3).
///   share   0 to 1; values outside are clamped
std::string format_bar(double share, int width);

}  // namespace castor
