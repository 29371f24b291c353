// The stack machine: opcodes in, calls on TorchRebuilder out.
//
// Delicate: a pickle's stack has marks, and no opcode but those made for it may reach below the last one. Lengths are
// compared with what is left of the pickle before anything is made from them.
#include "formats/torch_pickle.h"

#include <bit>
#include <cstring>
#include <map>

#include "core/base/error.h"
#include "core/base/file_error.h"
#include "core/base/json.h"
#include "formats/torch_rebuild.h"

namespace castor::formats {
namespace {

static_assert(std::endian::native == std::endian::little, "a pickle's integers are little-endian");

constexpr std::size_t kMaxNameBytes = 512;  // of a module or a class
constexpr std::size_t kMaxLongBytes = 8;

class PickleMachine {
 public:
  PickleMachine(std::span<const std::byte> bytes, const std::string& file, std::uint64_t file_offset,
                const PickleOptions& options)
      : bytes_(bytes), file_offset_(file_offset), values_(file, bytes.size(), options) {}

  PickleTree run();

 private:
  using Values = SegmentedList<const PickleValue*>;
  using Kind = PickleSequence::Kind;

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    values_.fail(cat(parts...));
  }

  bool step();
  bool step_text(unsigned char opcode);
  bool step_container(unsigned char opcode);
  bool step_memo(unsigned char opcode);
  bool step_call(unsigned char opcode);

  std::string_view take(std::uint64_t count) {
    if (count > bytes_.size() - at_) {
      fail("the pickle ends after ", bytes_.size() - at_, " of ", count, " bytes: it was cut short");
    }
    const std::string_view taken(reinterpret_cast<const char*>(bytes_.data()) + at_, count);
    at_ += count;
    return taken;
  }
  template <class Number>
  Number number() {
    Number value;
    std::memcpy(&value, take(sizeof(Number)).data(), sizeof(Number));
    return value;
  }
  std::string_view line() {
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + at_, bytes_.size() - at_);
    const std::size_t end = rest.substr(0, kMaxNameBytes + 1).find('\n');
    if (end == std::string_view::npos) fail("expected a name of at most ", kMaxNameBytes, " bytes and a line's end");
    return take(end + 1).substr(0, end);
  }
  std::int64_t integer_of(std::uint64_t count);
  double big_endian_double();
  const std::string& name_text(const PickleValue* value) const;

  void push(const PickleValue* value) { stack_.push_back(value); }
  void push_text(std::string_view text) {
    if (!is_utf8(text)) fail("expected a text in UTF-8, got ", quote_name(text, 40));
    push(values_.add(std::string(text)));
  }
  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  const PickleValue* top() const {
    if (stack_.size() <= floor()) fail("an opcode needs a value, and the stack has none");
    return stack_.back();
  }
  const PickleValue* pop() {
    const PickleValue* value = top();
    stack_.pop_back();
    return value;
  }
  // The values from number `first` of the stack on.
  Values pop_from(std::size_t first) {
    Values values;
    for (std::size_t i = first; i < stack_.size(); ++i) values.push_back(stack_[i]);
    stack_.truncate(first);
    return values;
  }
  // The values above the last mark, which goes.
  Values pop_mark() {
    if (marks_.empty()) fail("an opcode needs a mark, and the stack has none");
    const std::size_t mark = marks_.back();
    marks_.pop_back();
    return pop_from(mark);
  }
  void push_tuple(std::size_t count) {
    if (stack_.size() - floor() < count) fail("a tuple of ", count, " needs more values than the stack has");
    push(values_.add(PickleSequence{Kind::tuple, pop_from(stack_.size() - count)}));
  }
  void extend(Kind kind, const Values& items);
  void set_items(const Values& items);
  void put(std::uint64_t index);
  void get(std::uint64_t index);

  std::span<const std::byte> bytes_;
  std::uint64_t file_offset_;
  std::size_t at_ = 0;
  TorchRebuilder values_;
  Values stack_;
  SegmentedList<std::size_t> marks_;  // sizes of the stack
  std::map<std::uint64_t, const PickleValue*> memo_;
};

std::int64_t PickleMachine::integer_of(std::uint64_t count) {
  const std::string_view digits = take(count);
  if (count > kMaxLongBytes) fail("an integer of ", count, " bytes: expected at most 64 bits");
  if (count == 0) return 0;
  const bool negative = (static_cast<unsigned char>(digits.back()) & 0x80) != 0;
  std::uint64_t value = negative ? ~std::uint64_t{0} : 0;
  std::memcpy(&value, digits.data(), count);
  return static_cast<std::int64_t>(value);
}

double PickleMachine::big_endian_double() { return std::bit_cast<double>(__builtin_bswap64(number<std::uint64_t>())); }

const std::string& PickleMachine::name_text(const PickleValue* value) const {
  const auto* text = value->get_if<std::string>();
  if (text == nullptr) fail("expected a module or a name, got ", value->kind_name());
  if (text->size() > kMaxNameBytes) fail("a name has ", text->size(), " bytes, expected at most ", kMaxNameBytes);
  return *text;
}

void PickleMachine::extend(Kind kind, const Values& items) {
  const PickleValue* target = top();
  const auto* sequence = target->get_if<PickleSequence>();
  if (sequence == nullptr || sequence->kind != kind) {
    fail("expected ", kind == Kind::list ? "a list" : "a set", " to add to, got ", target->kind_name());
  }
  std::get<PickleSequence>(values_.changeable(target).data).items.append(items);
}

void PickleMachine::set_items(const Values& items) {
  const PickleValue* target = top();
  if (target->get_if<PickleDict>() == nullptr) fail("expected a dict to add to, got ", target->kind_name());
  if (items.size() % 2 != 0) fail("a dict gets ", items.size(), " keys and values, expected pairs");
  auto& into = std::get<PickleDict>(values_.changeable(target).data).items;
  for (std::size_t i = 0; i < items.size(); i += 2) {
    const PickleValue& key = *items[i];
    const auto* tuple = key.get_if<PickleSequence>();
    const bool is_tuple = tuple != nullptr && tuple->kind == Kind::tuple;
    if ((tuple != nullptr && !is_tuple) || key.get_if<PickleDict>() != nullptr ||
        key.get_if<TorchTensor>() != nullptr || key.get_if<PickleObject>() != nullptr) {
      fail("expected a text or a number as a dict's key, got ", key.kind_name());
    }
    into.emplace_back(items[i], items[i + 1]);
  }
}

void PickleMachine::put(std::uint64_t index) {
  const PickleValue* value = top();
  if (index >= std::max<std::uint64_t>(bytes_.size(), 256)) {
    fail("the memo's number ", index, " is larger than the pickle could count to");
  }
  memo_[index] = value;
}

void PickleMachine::get(std::uint64_t index) {
  const auto found = memo_.find(index);
  if (found == memo_.end()) fail("the memo has no number ", index);
  push(found->second);
}

// Numbers, texts and bytes. Each returns false if the opcode is not one of its own.
bool PickleMachine::step_text(unsigned char opcode) {
  switch (opcode) {
    case 'N':  // NONE
      push(values_.add(std::monostate()));
      return true;
    case 0x88:  // NEWTRUE
    case 0x89:  // NEWFALSE
      push(values_.add(opcode == 0x88));
      return true;
    case 'J':  // BININT
      push(values_.add(std::int64_t{number<std::int32_t>()}));
      return true;
    case 'K':  // BININT1
      push(values_.add(std::int64_t{number<std::uint8_t>()}));
      return true;
    case 'M':  // BININT2
      push(values_.add(std::int64_t{number<std::uint16_t>()}));
      return true;
    case 0x8A:  // LONG1
      push(values_.add(integer_of(number<std::uint8_t>())));
      return true;
    case 0x8B:  // LONG4
      push(values_.add(integer_of(number<std::uint32_t>())));
      return true;
    case 'G':  // BINFLOAT
      push(values_.add(big_endian_double()));
      return true;
    case 'U':   // SHORT_BINSTRING, Python 2's text
    case 0x8C:  // SHORT_BINUNICODE
      push_text(take(number<std::uint8_t>()));
      return true;
    case 'T':  // BINSTRING
    case 'X':  // BINUNICODE
      push_text(take(number<std::uint32_t>()));
      return true;
    case 0x8D:  // BINUNICODE8
      push_text(take(number<std::uint64_t>()));
      return true;
    case 'C':  // SHORT_BINBYTES
      push(values_.add(PickleBytes{std::string(take(number<std::uint8_t>()))}));
      return true;
    case 'B':  // BINBYTES
      push(values_.add(PickleBytes{std::string(take(number<std::uint32_t>()))}));
      return true;
    case 0x8E:  // BINBYTES8
    case 0x96:  // BYTEARRAY8
      push(values_.add(PickleBytes{std::string(take(number<std::uint64_t>()))}));
      return true;
    default:
      return false;
  }
}

bool PickleMachine::step_container(unsigned char opcode) {
  switch (opcode) {
    case ')':  // EMPTY_TUPLE
      push_tuple(0);
      return true;
    case 0x85:  // TUPLE1
    case 0x86:  // TUPLE2
    case 0x87:  // TUPLE3
      push_tuple(opcode - 0x84u);
      return true;
    case 't':  // TUPLE
      push(values_.add(PickleSequence{Kind::tuple, pop_mark()}));
      return true;
    case ']':  // EMPTY_LIST
      push(values_.add(PickleSequence{}));
      return true;
    case 'l':  // LIST
      push(values_.add(PickleSequence{Kind::list, pop_mark()}));
      return true;
    case 'a': {  // APPEND
      const PickleValue* item = pop();
      extend(Kind::list, {item});
      return true;
    }
    case 'e':  // APPENDS
      extend(Kind::list, pop_mark());
      return true;
    case 0x8F:  // EMPTY_SET
      push(values_.add(PickleSequence{Kind::set, {}}));
      return true;
    case 0x90:  // ADDITEMS
      extend(Kind::set, pop_mark());
      return true;
    case 0x91:  // FROZENSET
      push(values_.add(PickleSequence{Kind::set, pop_mark()}));
      return true;
    case '}':  // EMPTY_DICT
      push(values_.add(PickleDict{}));
      return true;
    case 'd': {  // DICT
      const Values items = pop_mark();
      push(values_.add(PickleDict{}));
      set_items(items);
      return true;
    }
    case 's': {  // SETITEM
      const PickleValue* value = pop();
      const PickleValue* key = pop();
      set_items({key, value});
      return true;
    }
    case 'u':  // SETITEMS
      set_items(pop_mark());
      return true;
    default:
      return false;
  }
}

bool PickleMachine::step_memo(unsigned char opcode) {
  switch (opcode) {
    case '(':  // MARK
      marks_.push_back(stack_.size());
      return true;
    case '0':  // POP
      pop();
      return true;
    case '1':  // POP_MARK
      pop_mark();
      return true;
    case '2':  // DUP
      push(top());
      return true;
    case 'q':  // BINPUT
      put(number<std::uint8_t>());
      return true;
    case 'r':  // LONG_BINPUT
      put(number<std::uint32_t>());
      return true;
    case 0x94:  // MEMOIZE
      put(memo_.size());
      return true;
    case 'h':  // BINGET
      get(number<std::uint8_t>());
      return true;
    case 'j':  // LONG_BINGET
      get(number<std::uint32_t>());
      return true;
    case 0x95: {  // FRAME: a promise of bytes, of no use here
      const auto length = number<std::uint64_t>();
      if (length > bytes_.size() - at_) fail("a frame of ", length, " bytes goes past the pickle's end");
      return true;
    }
    default:
      return false;
  }
}

bool PickleMachine::step_call(unsigned char opcode) {
  switch (opcode) {
    case 'c': {  // GLOBAL
      const std::string_view module = line();
      push(values_.global(module, line()));
      return true;
    }
    case 0x93: {  // STACK_GLOBAL
      const std::string& name = name_text(pop());
      const std::string& module = name_text(pop());
      push(values_.global(module, name));
      return true;
    }
    case 'R':     // REDUCE
    case 0x81: {  // NEWOBJ: the same for the classes that are known
      const PickleValue* args = pop();
      const PickleValue* callee = pop();
      push(values_.call(callee, args));
      return true;
    }
    case 'b': {  // BUILD
      const PickleValue* state = pop();
      values_.set_state(top(), state);
      return true;
    }
    case 'Q':  // BINPERSID
      push(values_.storage(pop()));
      return true;
    default:
      return false;
  }
}

// Returns false at STOP.
bool PickleMachine::step() {
  values_.set_position(file_offset_ + at_);
  const auto opcode = number<std::uint8_t>();
  if (opcode == '.') return false;
  if (!step_text(opcode) && !step_container(opcode) && !step_memo(opcode) && !step_call(opcode)) {
    fail("the opcode ", int{opcode}, " is none that torch.save writes with protocols 2 to 5");
  }
  return true;
}

PickleTree PickleMachine::run() {
  values_.set_position(file_offset_);
  if (bytes_.size() < 2 || number<std::uint8_t>() != 0x80) fail("expected a pickle of protocol 2 to 5");
  const auto protocol = number<std::uint8_t>();
  if (protocol < 2 || protocol > 5) fail("expected a pickle of protocol 2 to 5, got ", int{protocol});
  while (step()) {
  }
  if (stack_.size() != 1 || !marks_.empty()) {
    fail("the pickle stops with ", stack_.size(), " values and ", marks_.size(), " marks left, expected one value");
  }
  if (at_ != bytes_.size()) fail("the pickle stops here, and ", bytes_.size() - at_, " bytes follow it");
  return values_.finish(stack_.back());
}

}  // namespace

PickleTree parse_torch_pickle(std::span<const std::byte> bytes, const std::string& file, std::uint64_t file_offset,
                              const PickleOptions& options) {
  if (bytes.size() > options.max_bytes) {
    throw FormatError(cat("torch pickle ", quote_name(file, 4096), ": at byte ", file_offset, ": the pickle has ",
                          bytes.size(), " bytes, at most ", options.max_bytes, " are read"),
                      file, file_offset);
  }
  return PickleMachine(bytes, file, file_offset, options).run();
}

}  // namespace castor::formats
