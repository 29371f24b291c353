// What the ranks of a job print, on its way to the launcher's own output or to a file a rank.
//
// Delicate: the bytes come through pipes that one thread empties, so a rank waits for it once a pipe is full; it writes
// whole lines, so that ranks do not cut into each other. What a rank had printed when it died still arrives.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/base/file_system.h"
#include "dist/processes.h"

namespace castor::dist {

class RankOutput {
 public:
  /// Starts the thread, which takes no signals that the caller has blocked.
  ///   log_folder  where each rank gets RANK/stdout.log and RANK/stderr.log; empty: lines pass to the standard output
  ///               and standard error of this process
  explicit RankOutput(std::string log_folder, FileSystem& files = posix_file_system());
  RankOutput(const RankOutput&) = delete;
  RankOutput& operator=(const RankOutput&) = delete;
  /// Passes on what has come and ends.
  ~RankOutput();

  /// Makes the pipes of a rank and returns the ends to start its process with; close them with `started` afterwards.
  /// Without a folder rank 0 keeps this process's own output (a terminal stays one), and lines of others begin with
  /// "[rank1]: ".
  /// Throws IoError where there is no pipe, or a file cannot be opened.
  ProcessOutput open(int rank);
  void started(const ProcessOutput& output);

 private:
  struct Stream {
    int pipe = -1;                   // where it comes from
    int target = -1;                 // standard output or error, for lines
    std::unique_ptr<OpenFile> file;  // or a file, for bytes
    std::uint64_t written = 0;       // bytes in the file
    std::string prefix;
    std::string line;  // its beginning, until its end comes
  };
  int add(Stream stream);
  void run();
  bool pass(Stream& stream);  // false at its end
  static void finish(Stream& stream);

  std::string folder_;
  FileSystem& files_;
  std::mutex mutex_;
  std::vector<Stream> streams_;
  std::atomic<bool> closing_{false};
  std::thread thread_;
};

}  // namespace castor::dist
