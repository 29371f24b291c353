// Console, progress bar and their small formats.
//
// Delicate: one write(2) a line, so that ranks or threads which share a terminal do not tear each other's lines, and no
// buffering, so that nothing is lost when the process dies. The width is asked at each redraw, because terminals are
// resized; cutting counts UTF-8 code points, not bytes, or a cut could leave half a character.
#include "core/base/console.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <sys/ioctl.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/error.h"

namespace castor {
namespace {

constexpr std::string_view kWipeRow = "\r\x1b[K";

Console::Options options_for(int descriptor) {
  const char* term = std::getenv("TERM");
  Console::Options options;
  options.terminal = isatty(descriptor) == 1 && !(term != nullptr && std::string_view(term) == "dumb");
  return options;
}

/// At most `columns` code points of one row.
std::string_view cut(std::string_view text, int columns) {
  int seen = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) == 0x80) continue;
    if (seen == columns) return text.substr(0, i);
    ++seen;
  }
  return text;
}

}  // namespace

Console::Console(int descriptor, const Options& options) : descriptor_(descriptor), options_(options) {}

Console::~Console() { end_status(false); }

Console& Console::standard_output() {
  static Console console(STDOUT_FILENO, options_for(STDOUT_FILENO));
  return console;
}

Console& Console::standard_error() {
  static Console console(STDERR_FILENO, options_for(STDERR_FILENO));
  return console;
}

int Console::width() const {
  if (options_.width > 0) return options_.width;
  winsize size{};
  if (options_.terminal && ioctl(descriptor_, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

void Console::write_all(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return;
    }
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
}

void Console::append_status(std::string& out) const {
  // The last column stays free: a terminal that wraps there would leave a row behind at every redraw.
  out += kWipeRow;
  out += cut(status_, std::max(1, width() - 1));
}

void Console::write_line(std::string_view text) {
  const std::lock_guard lock(mutex_);
  std::string out;
  if (drawn_) out += kWipeRow;
  out += text;
  out += '\n';
  if (drawn_) append_status(out);
  write_all(out);
}

void Console::write_text(std::string_view text) {
  const std::lock_guard lock(mutex_);
  std::string out;
  if (drawn_) out += kWipeRow;
  drawn_ = false;
  out += text;
  write_all(out);
}

void Console::set_status(std::string_view text) {
  const std::lock_guard lock(mutex_);
  status_ = text;
  withheld_ = true;
  const double pause = options_.terminal ? options_.redraw_seconds : options_.plain_status_seconds;
  if (was_shown_ && seconds_since(last_shown_) < pause) return;
  was_shown_ = true;
  withheld_ = false;
  last_shown_ = std::chrono::steady_clock::now();
  std::string out;
  if (options_.terminal) {
    append_status(out);
    drawn_ = true;
  } else {
    out = status_ + "\n";
  }
  write_all(out);
}

void Console::end_status(bool keep) {
  const std::lock_guard lock(mutex_);
  std::string out;
  if (keep && (drawn_ || withheld_)) {
    if (options_.terminal) {
      append_status(out);
    } else {
      out = withheld_ ? status_ : "";
    }
    if (!out.empty()) out += '\n';
  } else if (drawn_) {
    out = kWipeRow;
  }
  status_.clear();
  drawn_ = withheld_ = was_shown_ = false;
  write_all(out);
}

ProgressBar::ProgressBar(Console& console, std::string label, std::int64_t total, std::int64_t start)
    : console_(console),
      label_(std::move(label)),
      total_(total),
      start_(start),
      began_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() {
  if (!finished_) console_.end_status(false);
}

void ProgressBar::update(std::int64_t done, std::string_view details) {
  std::string text = label_;
  if (total_ > 0) {
    const double share = static_cast<double>(done) / static_cast<double>(total_);
    const int bar_width = std::clamp(console_.width() / 4, 12, 32);
    const auto since_start = static_cast<double>(done - start_);
    const double left = since_start > 0 ? seconds_since(began_) / since_start * static_cast<double>(total_ - done) : -1;
    text += cat(" ", format_bar(share, bar_width), " ", done, "/", total_, "  ", format_duration(left), " left");
  } else {
    text += cat(" ", done);
  }
  if (!details.empty()) text += cat("  ", details);
  console_.set_status(text);
}

void ProgressBar::finish() {
  if (!finished_) console_.end_status(true);
  finished_ = true;
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e11) return "?";
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  const std::int64_t days = whole / 86400;
  char clock[32];
  std::snprintf(clock, sizeof clock, "%d:%02d:%02d", static_cast<int>(whole % 86400 / 3600),
                static_cast<int>(whole % 3600 / 60), static_cast<int>(whole % 60));
  if (days == 0) return clock;
  return cat(days, days == 1 ? " day, " : " days, ", clock);
}

std::string format_bar(double share, int width) {
  const int inner = std::max(1, width - 2);
  const double clamped = std::isfinite(share) ? std::clamp(share, 0.0, 1.0) : 0.0;
  const auto full = static_cast<std::size_t>(std::floor(clamped * inner + 1e-9));
  return cat("[", std::string(full, '#'), std::string(static_cast<std::size_t>(inner) - full, '.'), "]");
}

}  // namespace castor
