// A lexer of just enough C++: comments, string, character and raw string literals are stepped over; what is left and
// begins with '#' is a directive. Delicate: a ' between digits or letters separates digits and opens no literal.
#include "tests/style/directives.h"

#include <cctype>
#include <utility>

namespace castor::style {
namespace {

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

std::string trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.remove_suffix(1);
  return std::string(text);
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  std::vector<Directive> run() {
    while (at_ < source_.size()) step();
    return std::move(found_);
  }

 private:
  bool starts(std::string_view text) const { return source_.substr(at_, text.size()) == text; }
  char previous() const { return at_ == 0 ? '\n' : source_[at_ - 1]; }

  void advance_to(std::size_t end) {
    if (end > source_.size()) end = source_.size();
    for (; at_ < end; ++at_) line_ += source_[at_] == '\n';
  }

  /// Moves behind the next `end`, or to the end of the source.
  void skip_past(std::string_view end) {
    const std::size_t found = source_.find(end, at_);
    advance_to(found == std::string_view::npos ? source_.size() : found + end.size());
  }

  void step() {
    const char c = source_[at_];
    if (c == '\n') {
      line_is_blank_ = true;
      advance_to(at_ + 1);
    } else if (starts("//")) {
      advance_to(source_.find('\n', at_));
    } else if (starts("/*")) {
      skip_past("*/");
    } else if (c == '#' && line_is_blank_) {
      directive();
    } else if (starts("R\"") && (!is_word(previous()) || previous() == '8' || previous() == 'L' || previous() == 'u')) {
      raw_string();
    } else if (c == '"' || (c == '\'' && !is_word(previous()))) {
      literal(c);
    } else {
      if (std::isspace(static_cast<unsigned char>(c)) == 0) line_is_blank_ = false;
      advance_to(at_ + 1);
    }
  }

  void raw_string() {
    line_is_blank_ = false;
    const std::size_t open = source_.find('(', at_);
    if (open == std::string_view::npos) return advance_to(source_.size());
    const std::string close = ")" + std::string(source_.substr(at_ + 2, open - at_ - 2)) + "\"";
    advance_to(open);
    skip_past(close);
  }

  void literal(char quote) {
    line_is_blank_ = false;
    std::size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote && source_[end] != '\n') end += source_[end] == '\\' ? 2 : 1;
    advance_to(end < source_.size() && source_[end] == quote ? end + 1 : end);
  }

  void directive() {
    const int first_line = line_;
    std::size_t end = at_;
    do {
      end = source_.find('\n', end == at_ ? end : end + 1);
    } while (end != std::string_view::npos && source_[end - 1] == '\\');
    const std::string text = trimmed(source_.substr(at_ + 1, end == std::string_view::npos ? end : end - at_ - 1));
    std::size_t name_end = 0;
    while (name_end < text.size() && is_word(text[name_end])) ++name_end;
    found_.push_back({first_line, text.substr(0, name_end), trimmed(std::string_view(text).substr(name_end))});
    advance_to(end);
  }

  std::string_view source_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_is_blank_ = true;  // nothing but blanks and comments so far on this line
  std::vector<Directive> found_;
};

}  // namespace

std::vector<Directive> find_directives(std::string_view source) { return Lexer(source).run(); }

std::string included_path(const Directive& include) {
  const std::string& text = include.argument;
  if (text.size() < 2 || (text[0] != '"' && text[0] != '<')) return "";
  const std::size_t end = text.find(text[0] == '"' ? '"' : '>', 1);
  return end == std::string::npos ? "" : text.substr(1, end - 1);
}

}  // namespace castor::style
