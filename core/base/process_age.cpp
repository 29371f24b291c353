// Field 22 of /proc/self/stat. Delicate: field 2 is the program's name in brackets, which may hold spaces and brackets
// of its own, so fields are counted from the last closing one.
#include "core/base/process_age.h"

#include <ctime>
#include <sstream>

#include <unistd.h>

#include "core/base/error.h"
#include "core/base/file.h"

namespace castor {

double process_age_seconds() {
  constexpr const char* kPath = "/proc/self/stat";
  const std::string text = read_text_file(kPath);
  const std::size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) throw FormatError(cat(kPath, ": expected a name in brackets"), kPath, 0);
  std::istringstream fields(text.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  double start_ticks = 0;
  if (!(fields >> start_ticks)) throw FormatError(cat(kPath, ": expected 22 fields"), kPath, name_end);
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  const double seconds = static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
  return seconds - start_ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace castor
