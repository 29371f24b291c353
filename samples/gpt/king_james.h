// The King James text, as Debian's program `bible` prints it: made once, kept in a folder, checked whenever it is used.
//
// Delicate: the text is a program's output, so it is only trusted when the program ended well and said enough; and it
// is written in one step (core/base/file.h), because a training run maps the file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/file.h"

namespace castor::samples {

/// A program whose output is a text.
struct TextProgram {
  std::string program = "bible";                                ///< looked up in PATH
  std::vector<std::string> arguments{"-f", "gen1:1-rev22:21"};  ///< everything, one verse a line
  std::string package = "bible-kjv";                            ///< the Debian package that brings the program
  std::uint64_t least_bytes = 4'000'000;                        ///< of the text; Debian 12 prints 4404412
  std::uint64_t most_bytes = std::uint64_t{64} << 20;           ///< more is refused
};

/// What the program prints. No shell is involved; its standard input is empty and its errors are shown.
/// Throws IoError{program} if it cannot be started (ENOENT names the Debian package and the line that installs it), is
/// stopped by a signal or ends with an exit code other than 0; FormatError{program} for a text of another length.
std::string run_text_program(const TextProgram& program);

/// The path of the text `folder`/king_james.txt. Runs the program if the file is not there, or if its size or digest is
/// not what `folder`/king_james.txt.xxh3 says; both files are written in one step each, the digest last.
/// Throws what run_text_program throws, and IoError for a folder or disk that cannot take the text.
std::string king_james_file(const std::string& folder, const TextProgram& program = {},
                            FileSystem& files = posix_file_system());

}  // namespace castor::samples
