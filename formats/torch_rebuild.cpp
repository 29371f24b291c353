// The known names as constructors of plain values.
//
// Delicate: results share their arguments wherever they can; what must be copied (a list into a set, a text into bytes)
// is paid from a budget as long as the pickle, because the memo can repeat one long argument in five bytes. A tensor's
// extent is summed with overflow checks, since sizes and strides are any 64-bit numbers.
#include "formats/torch_rebuild.h"

#include <algorithm>
#include <limits>

#include "core/base/file_error.h"
#include "formats/array_shape.h"
#include "formats/pickle_check.h"

namespace castor::formats {
namespace {

constexpr std::size_t kMaxAxes = 64;
constexpr std::size_t kMaxKeyBytes = 64;

std::string_view without_castor_dtype(const TorchGlobal& type) {
  return type.item_bytes == 1 && type.name.ends_with("UntypedStorage")
             ? "is bytes without an element type: save tensors, not storages"
             : "is an element type that Castor does not have: convert the tensor where it was made, tensor.to(...), to "
               "float, int32 or int64 and save it again";
}

}  // namespace

void TorchRebuilder::fail(const std::string& what) const {
  throw FormatError(cat("torch pickle ", quote_name(file_, 4096), ": at byte ", position_, ": ", what), file_,
                    position_);
}

void TorchRebuilder::count_values(std::size_t values) {
  values_ += values;
  if (values_ > options_.max_values) {
    fail(cat("the pickle makes more than ", options_.max_values, " values, more than a checkpoint needs"));
  }
}

void TorchRebuilder::count_copy(std::uint64_t items) {
  if (items > copies_left_) fail("the pickle copies more than its own length: it is made to fill memory");
  copies_left_ -= items;
}

void TorchRebuilder::fail_args(std::string_view name, std::string_view expected, const Args& args) const {
  std::string got;
  for (std::size_t i = 0; i < std::min<std::size_t>(args.size(), 10); ++i) {
    got += cat(got.empty() ? "" : ", ", args[i]->kind_name());
  }
  fail(cat(name, ": expected the arguments (", expected, "), got ", args.size(), ": (", got, ")"));
}

const PickleValue* TorchRebuilder::global(std::string_view module, std::string_view name) {
  const TorchGlobal* known = find_torch_global(module, name);
  if (known != nullptr) return add(PickleName{known});
  const std::string full = cat(module, ".", name);
  if (std::ranges::find(options_.inert_globals, full) != options_.inert_globals.end()) {
    auto object = std::make_unique<PickleObject>();
    object->name = full;
    return add(std::move(object));
  }
  fail(
      cat("the name ", quote_name(full),
          " is refused: a checkpoint may use tensors, containers, numbers and texts only, and nothing in it is run. If "
          "you trust the file, load it with torch where that name is known and save its tensors alone: "
          "torch.save(model.state_dict(), path)"));
}

const PickleValue* TorchRebuilder::call(const PickleValue* callee, const PickleValue* args) {
  const auto* tuple = args->get_if<PickleSequence>();
  if (tuple == nullptr || tuple->kind != PickleSequence::Kind::tuple) {
    fail(cat("expected a tuple of arguments, got ", args->kind_name()));
  }
  if (const auto* object = callee->get_if<PickleObject>()) return call_inert(*object, args);
  const auto* name = callee->get_if<PickleName>();
  if (name == nullptr) fail(cat("expected a name to call, got ", callee->kind_name()));
  const TorchGlobal& known = *name->global;
  const Args& items = tuple->items;
  switch (known.kind) {
    case TorchGlobalKind::ordered_dict:
      if (!items.empty()) fail_args(known.name, "", items);
      return add(PickleDict{});
    case TorchGlobalKind::counter:
      if (items.empty()) return add(PickleDict{});
      if (items.size() != 1 || items[0]->get_if<PickleDict>() == nullptr) fail_args(known.name, "a dict", items);
      return items[0];
    case TorchGlobalKind::set: {
      const auto* list = items.size() == 1 ? items[0]->get_if<PickleSequence>() : nullptr;
      if (list == nullptr) fail_args(known.name, "a list", items);
      count_copy(list->items.size());
      return add(PickleSequence{PickleSequence::Kind::set, list->items});
    }
    case TorchGlobalKind::bytes:
    case TorchGlobalKind::encode:
      return call_bytes(known, items);
    case TorchGlobalKind::size: {
      const auto* size = items.size() == 1 ? items[0]->get_if<PickleSequence>() : nullptr;
      if (size == nullptr || size->kind != PickleSequence::Kind::tuple) fail_args(known.name, "a tuple", items);
      return items[0];
    }
    case TorchGlobalKind::device:
      return call_device(items);
    case TorchGlobalKind::dtype:
    case TorchGlobalKind::storage:
      fail(cat(known.name, " is a type and is not called in a checkpoint"));
    case TorchGlobalKind::rebuild_tensor:
    case TorchGlobalKind::rebuild_tensor_v2:
    case TorchGlobalKind::rebuild_tensor_v3:
      return rebuild_tensor(known, items);
    case TorchGlobalKind::rebuild_parameter:
    case TorchGlobalKind::rebuild_parameter_with_state:
      return rebuild_parameter(known, items);
  }
  throw InternalError("torch pickle: a kind outside the enumeration");
}

const PickleValue* TorchRebuilder::call_inert(const PickleObject& callee, const PickleValue* args) {
  if (callee.args != nullptr) fail(cat("an object of ", quote_name(callee.name), " is not called in a checkpoint"));
  auto object = std::make_unique<PickleObject>();
  object->name = callee.name;
  object->args = args;
  return add(std::move(object));
}

const PickleValue* TorchRebuilder::call_bytes(const TorchGlobal& callee, const Args& args) {
  const bool may_be_empty = callee.kind == TorchGlobalKind::bytes;
  if (may_be_empty && args.empty()) return add(PickleBytes{});
  if (may_be_empty && args.size() == 1 && args[0]->get_if<PickleBytes>() != nullptr) return args[0];
  const auto* text = args.size() == 2 ? args[0]->get_if<std::string>() : nullptr;
  const auto* encoding = args.size() == 2 ? args[1]->get_if<std::string>() : nullptr;
  if (text == nullptr || encoding == nullptr || (*encoding != "latin1" && *encoding != "latin-1")) {
    fail_args(callee.name, "a text, \"latin1\"", args);
  }
  return add(PickleBytes{decode_latin1(*text)});
}

std::string TorchRebuilder::decode_latin1(const std::string& text) {
  count_copy(text.size());
  std::string bytes;
  bytes.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto first = static_cast<unsigned char>(text[i]);
    if (first < 0x80) {
      bytes += text[i];
    } else if (first < 0xC4 && i + 1 < text.size()) {  // U+0080 to U+00FF: two bytes, the text is valid UTF-8
      bytes += static_cast<char>(((first & 0x03) << 6) | (static_cast<unsigned char>(text[++i]) & 0x3F));
    } else {
      fail("bytes written as a text have a letter beyond U+00FF");
    }
  }
  return bytes;
}

const PickleValue* TorchRebuilder::call_device(const Args& args) {
  const auto* type = !args.empty() ? args[0]->get_if<std::string>() : nullptr;
  const bool has_index = args.size() == 2 && args[1]->get_if<std::int64_t>() != nullptr;
  if (type == nullptr || type->size() > kMaxKeyBytes || (args.size() != 1 && !has_index)) {
    fail_args("torch.device", "a text, an integer", args);
  }
  return add(TorchDevice{has_index ? cat(*type, ":", *args[1]->get_if<std::int64_t>()) : *type});
}

const PickleValue* TorchRebuilder::storage(const PickleValue* id) {
  const auto* tuple = id->get_if<PickleSequence>();
  if (tuple == nullptr || tuple->kind != PickleSequence::Kind::tuple) {
    fail(cat("expected the reference to a storage, a tuple, got ", id->kind_name()));
  }
  const Args& items = tuple->items;
  constexpr std::string_view kExpected = "\"storage\", a storage type, a key, a place, a number of elements";
  const bool known_length =
      items.size() == 5 || (items.size() == 6 && std::holds_alternative<std::monostate>(items[5]->data));
  if (!known_length) fail_args("storage", kExpected, items);
  const auto* word = items[0]->get_if<std::string>();
  const auto* type = items[1]->get_if<PickleName>();
  const auto* key = items[2]->get_if<std::string>();
  const auto* numel = items[4]->get_if<std::int64_t>();
  if (word == nullptr || *word != "storage" || type == nullptr || key == nullptr ||
      items[3]->get_if<std::string>() == nullptr || numel == nullptr) {
    fail_args("storage", kExpected, items);
  }
  const TorchGlobal& known = *type->global;
  if (known.kind != TorchGlobalKind::storage) fail(cat("storage: ", known.name, " is no type of storage"));
  if (key->empty() || key->size() > kMaxKeyBytes) {
    fail(cat("storage: expected a key of 1 to ", kMaxKeyBytes, " bytes, got ", quote_name(*key, 80)));
  }
  auto storage = std::make_unique<TorchStorage>();
  storage->type = &known;
  storage->key = *key;
  storage->numel = static_cast<std::uint64_t>(natural(items[4], "storage: the number of elements"));
  storage->file_at = position_;
  if (storage->numel > std::numeric_limits<std::int64_t>::max() / known.item_bytes) {
    fail(cat("storage ", quote_name(*key), ": ", storage->numel, " elements of ", known.item_bytes,
             " bytes overflow 64 bits"));
  }
  return add(std::move(storage));
}

void TorchRebuilder::set_state(const PickleValue* target, const PickleValue* state) {
  if (target->get_if<PickleDict>() != nullptr) return;
  const auto* object = target->get_if<PickleObject>();
  if (object == nullptr || object->args == nullptr) {
    fail(cat("expected an OrderedDict or an object to give a state to, got ", target->kind_name()));
  }
  if (object->state != nullptr) fail(cat("an object of ", quote_name(object->name), " gets a state twice"));
  std::get<std::unique_ptr<PickleObject>>(changeable(target).data)->state = state;
}

std::int64_t TorchRebuilder::natural(const PickleValue* value, std::string_view what) const {
  const auto* integer = value->get_if<std::int64_t>();
  if (integer == nullptr) fail(cat(what, ": expected an integer from 0 on, got ", value->kind_name()));
  if (*integer < 0) fail(cat(what, ": expected an integer from 0 on, got ", *integer));
  return *integer;
}

bool TorchRebuilder::boolean(const PickleValue* value, std::string_view what) const {
  const bool* flag = value->get_if<bool>();
  if (flag == nullptr) fail(cat(what, ": expected a bool, got ", value->kind_name()));
  return *flag;
}

std::vector<std::int64_t> TorchRebuilder::sizes(const PickleValue* value, std::string_view what) const {
  const auto* tuple = value->get_if<PickleSequence>();
  if (tuple == nullptr || tuple->kind != PickleSequence::Kind::tuple) {
    fail(cat(what, ": expected a tuple of integers, got ", value->kind_name()));
  }
  if (tuple->items.size() > kMaxAxes)
    fail(cat(what, ": expected at most ", kMaxAxes, " axes, got ", tuple->items.size()));
  std::vector<std::int64_t> sizes;
  sizes.reserve(tuple->items.size());
  for (const PickleValue* item : tuple->items) sizes.push_back(natural(item, what));
  return sizes;
}

const PickleValue* TorchRebuilder::rebuild_tensor(const TorchGlobal& callee, const Args& args) {
  const bool v1 = callee.kind == TorchGlobalKind::rebuild_tensor;
  const bool v3 = callee.kind == TorchGlobalKind::rebuild_tensor_v3;
  const std::size_t least = v1 ? 4 : v3 ? 7 : 6;
  const TorchStorage* storage = args.empty() ? nullptr : args[0]->get_if<TorchStorage>();
  if (storage == nullptr || args.size() < least || args.size() > least + (v1 ? 0 : 1)) {
    fail_args(callee.name,
              v1   ? "a storage, an offset, sizes, strides"
              : v3 ? "a storage, an offset, sizes, strides, requires_grad, hooks, a dtype"
                   : "a storage, an offset, sizes, strides, requires_grad, hooks",
              args);
  }
  auto tensor = std::make_unique<TorchTensor>();
  tensor->storage = storage;
  tensor->storage_offset = static_cast<std::uint64_t>(natural(args[1], "tensor: the storage offset"));
  tensor->shape = sizes(args[2], "tensor: the sizes");
  tensor->strides = sizes(args[3], "tensor: the strides");
  count_values(tensor->shape.size());
  if (!v1) {
    tensor->requires_grad = boolean(args[4], "tensor: requires_grad");
    const bool no_hooks =
        args[5]->get_if<PickleDict>() != nullptr || std::holds_alternative<std::monostate>(args[5]->data);
    if (!no_hooks) fail(cat("tensor: expected a dict of hooks or None, got ", args[5]->kind_name()));
  }
  const TorchGlobal* type = storage->type;
  if (v3) {
    const auto* name = args[6]->get_if<PickleName>();
    if (name == nullptr || name->global->kind != TorchGlobalKind::dtype) {
      fail(cat("tensor: expected a dtype, got ", name == nullptr ? args[6]->kind_name() : name->global->name));
    }
    type = name->global;
  }
  if (!type->dtype) fail(cat("tensor: ", type->name, " ", without_castor_dtype(*type)));
  tensor->dtype = *type->dtype;
  // What a later torch says of a tensor beyond its elements: a lazy conjugate or negation would change them.
  if (args.size() > least) {
    const auto* metadata = args[least]->get_if<PickleDict>();
    if (metadata == nullptr && !std::holds_alternative<std::monostate>(args[least]->data)) {
      fail(cat("tensor: expected a dict of metadata or None, got ", args[least]->kind_name()));
    }
    for (std::size_t i = 0; metadata != nullptr && i < metadata->items.size(); ++i) {
      const bool* flag = metadata->items[i].second->get_if<bool>();
      if (flag == nullptr || *flag)
        fail("tensor: it is a lazily conjugated or negated view: save tensor.resolve_neg()");
    }
  }
  check_extent(*tensor);
  return add(std::move(tensor));
}

void TorchRebuilder::check_extent(const TorchTensor& tensor) const {
  if (tensor.shape.size() != tensor.strides.size()) {
    fail(cat("tensor: ", tensor.shape.size(), " sizes and ", tensor.strides.size(), " strides"));
  }
  const TorchStorage& storage = *tensor.storage;
  const auto text = [&] {
    return cat("tensor: ", tensor.dtype, shape_text(tensor.shape), " with strides ", shape_text(tensor.strides), " at ",
               tensor.storage_offset);
  };
  if (!bytes_of_shape(tensor.shape, tensor.dtype)) fail(cat(text(), " takes more bytes than 64 bits count"));
  if (std::ranges::find(tensor.shape, 0) != tensor.shape.end()) return;
  const std::uint64_t elements = storage.bytes() / dtype_size(tensor.dtype);
  std::uint64_t last = tensor.storage_offset;
  bool inside = true;
  for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
    std::uint64_t step = 0;
    inside = inside &&
             !__builtin_mul_overflow(static_cast<std::uint64_t>(tensor.shape[axis] - 1),
                                     static_cast<std::uint64_t>(tensor.strides[axis]), &step) &&
             !__builtin_add_overflow(last, step, &last);
  }
  if (!inside || last >= elements) {
    fail(cat(text(), " leaves its storage ", quote_name(storage.key), ", which has ", elements, " elements"));
  }
}

const PickleValue* TorchRebuilder::rebuild_parameter(const TorchGlobal& callee, const Args& args) {
  const std::size_t expected = callee.kind == TorchGlobalKind::rebuild_parameter ? 3 : 4;
  const TorchTensor* tensor = args.empty() ? nullptr : args[0]->get_if<TorchTensor>();
  if (tensor == nullptr || args.size() != expected) fail_args(callee.name, "a tensor, requires_grad, hooks", args);
  auto parameter = std::make_unique<TorchTensor>(*tensor);
  parameter->requires_grad = boolean(args[1], "parameter: requires_grad");
  parameter->is_parameter = true;
  count_values(parameter->shape.size());
  return add(std::move(parameter));
}

PickleTree TorchRebuilder::finish(const PickleValue* root) {
  tree_.root = root;
  const std::string problem = find_pickle_problem(tree_, options_.max_values);
  if (!problem.empty()) fail(cat("the pickle is no tree of values: ", problem));
  return std::move(tree_);
}

}  // namespace castor::formats
