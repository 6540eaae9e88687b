#include "ps-worker/core/outbox.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace ps::worker {

std::size_t Outbox::IndexOf(control::Body kind) {
  return static_cast<std::size_t>(std::find(kKinds.begin(), kKinds.end(), kind) - kKinds.begin());
}

bool Outbox::Keeps(control::Body kind) { return IndexOf(kind) < kKinds.size(); }

void Outbox::Keep(control::MessageT message) {
  PS_CHECK(Keeps(message.body.type), control::BodyName(message));
  Entry& entry = tasks_[message.task];
  entry.kept[IndexOf(message.body.type)] = std::move(message);
}

void Outbox::Settle(std::uint64_t task, control::Body kind) {
  const auto found = tasks_.find(task);
  if (found == tasks_.end() || !Keeps(kind)) return;
  found->second.kept[IndexOf(kind)].reset();
}

void Outbox::KeepExit(control::MessageT exited) {
  PS_CHECK(exited.body.type == control::Body::TaskExited, control::BodyName(exited));
  const std::uint64_t task = exited.body.AsTaskExited()->task;
  tasks_[task].exited = std::move(exited);
  std::size_t exits = 0;
  for (const auto& entry : tasks_) exits += entry.second.exited.has_value() ? 1 : 0;
  // Task numbers grow, so the first ended one is the oldest.
  for (auto entry = tasks_.begin(); exits > kExitsMax && entry != tasks_.end();) {
    if (!entry->second.exited.has_value()) {
      ++entry;
      continue;
    }
    entry = tasks_.erase(entry);
    --exits;
  }
}

void Outbox::Flush(const std::function<bool(const control::MessageT&)>& send) {
  for (auto entry = tasks_.begin(); entry != tasks_.end();) {
    for (const std::optional<control::MessageT>& message : entry->second.kept) {
      if (message.has_value() && !send(*message)) return;
    }
    if (!entry->second.exited.has_value()) {
      ++entry;
      continue;
    }
    if (!send(*entry->second.exited)) return;
    entry = tasks_.erase(entry);
  }
}

std::vector<const control::TaskExitedT*> Outbox::Exits() const {
  std::vector<const control::TaskExitedT*> exits;
  for (const auto& entry : tasks_) {
    if (entry.second.exited.has_value()) exits.push_back(entry.second.exited->body.AsTaskExited());
  }
  return exits;
}

std::size_t Outbox::size() const {
  std::size_t count = 0;
  for (const auto& entry : tasks_) {
    for (const auto& message : entry.second.kept) count += message.has_value() ? 1 : 0;
    count += entry.second.exited.has_value() ? 1 : 0;
  }
  return count;
}

}  // namespace ps::worker
