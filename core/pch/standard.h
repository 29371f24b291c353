// The standard library's headers that most files include, parsed once for each target instead of once for each file:
// they are nine tenths of what a file of this tree makes the compiler read.
//
// Delicate: only what never changes belongs here; a header of the tree would rebuild everything whenever it is edited.
// Files include what they use all the same: this header is not theirs, and other tools read them without it. It has no
// guard of its own, which compilers refuse in a file that they compile alone.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <filesystem>
#include <functional>
#include <iomanip>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>
