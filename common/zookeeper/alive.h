// Callbacks that outlive their object, all on one loop: WhileAlive(alive_, f) calls f only as long
// as the object that owns alive_ is there. It holds alive_ weakly.
#pragma once

#include <memory>
#include <utility>

namespace ps::zk {

template <typename Function>
auto WhileAlive(const std::shared_ptr<void>& alive, Function function) {
  return [weak = std::weak_ptr<void>(alive),
          function = std::move(function)](auto&&... arguments) mutable {
    if (!weak.expired()) function(std::forward<decltype(arguments)>(arguments)...);
  };
}

}  // namespace ps::zk
