#include "common/zookeeper/watcher.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "common/zookeeper/alive.h"

namespace ps::zk {

namespace {

// Changes of the access list or of children do not count.
bool SameValue(const NodeValue& a, const NodeValue& b) {
  return a.created_zxid == b.created_zxid && a.modified_zxid == b.modified_zxid;
}

bool SameValue(const std::optional<NodeValue>& a, const std::optional<NodeValue>& b) {
  if (a.has_value() != b.has_value()) return false;
  return !a.has_value() || SameValue(*a, *b);
}

}  // namespace

NodeWatcher::NodeWatcher(Session& session, std::string path, Callback callback)
    : session_(session),
      path_(std::move(path)),
      callback_(std::move(callback)),
      retry_timer_(session.io()),
      alive_(std::make_shared<int>(0)) {
  watch_ = session_.AddWatch(WhileAlive(alive_, [this](const std::string&) { Refresh(); }));
  subscription_ = session_.OnState(WhileAlive(alive_, [this](const StateEvent& event) {
    if (event.state == State::kConnected) Refresh();
  }));
  Refresh();
}

NodeWatcher::~NodeWatcher() {
  session_.RemoveOnState(subscription_);
  session_.RemoveWatch(watch_);
}

void NodeWatcher::Refresh() {
  if (reading_) {
    read_again_ = true;
    return;
  }
  if (!session_.connected()) return;  // comes again with the connection
  reading_ = true;
  read_again_ = false;
  ReadValue();
}

void NodeWatcher::ReadValue() {
  session_.Get(path_,
               WhileAlive(alive_,
                          [this](Result<NodeValue> value) {
                            if (value.ok()) return Finish(std::move(value).value());
                            if (value.error().code == ErrorCode::kNotFound) return CheckAbsence();
                            Retry(value.error());
                          }),
               watch_);
}

// Reading a node that is not there leaves no watch behind, asking for its existence does.
void NodeWatcher::CheckAbsence() {
  session_.Exists(path_,
                  WhileAlive(alive_,
                             [this](Result<bool> exists) {
                               if (!exists.ok()) return Retry(exists.error());
                               if (*exists) return ReadValue();
                               Finish(std::nullopt);
                             }),
                  watch_);
}

void NodeWatcher::Finish(const std::optional<NodeValue>& value) {
  reading_ = false;
  const bool tell = !told_ || !SameValue(value, value_);
  value_ = value;
  told_ = true;
  if (read_again_) Refresh();
  if (!tell) return;
  const Callback callback = callback_;  // it may destroy this object
  callback(value);
}

void NodeWatcher::Retry(const Error& error) {
  reading_ = false;
  spdlog::debug("zookeeper: watching {}: {}", path_, error.message);
  retry_timer_.expires_after(session_.session_timeout() / 4);
  retry_timer_.async_wait(WhileAlive(alive_, [this](const boost::system::error_code& cancelled) {
    if (!cancelled) Refresh();
  }));
}

ChildrenWatcher::ChildrenWatcher(Session& session, std::string path, Callback callback)
    : session_(session),
      path_(std::move(path)),
      callback_(std::move(callback)),
      retry_timer_(session.io()),
      alive_(std::make_shared<int>(0)) {
  names_watch_ = session_.AddWatch(WhileAlive(alive_, [this](const std::string&) { Refresh(); }));
  data_watch_ = session_.AddWatch(WhileAlive(alive_, [this](const std::string& child) {
    stale_.insert(NameOf(child));
    Refresh();
  }));
  subscription_ = session_.OnState(WhileAlive(alive_, [this](const StateEvent& event) {
    if (event.state != State::kConnected) return;
    for (const auto& child : children_) stale_.insert(child.first);
    Refresh();
  }));
  Refresh();
}

ChildrenWatcher::~ChildrenWatcher() {
  session_.RemoveOnState(subscription_);
  session_.RemoveWatch(names_watch_);
  session_.RemoveWatch(data_watch_);
}

void ChildrenWatcher::Refresh() {
  if (reading_) {
    read_again_ = true;
    return;
  }
  if (!session_.connected()) return;
  reading_ = true;
  read_again_ = false;
  read_error_.reset();
  ReadNames();
}

void ChildrenWatcher::ReadNames() {
  session_.Children(path_,
                    WhileAlive(alive_,
                               [this](Result<std::vector<std::string>> names) {
                                 if (names.ok()) return ReadData(std::move(names).value());
                                 if (names.error().code == ErrorCode::kNotFound)
                                   return CheckAbsence();
                                 Retry(names.error());
                               }),
                    names_watch_);
}

void ChildrenWatcher::CheckAbsence() {
  session_.Exists(path_,
                  WhileAlive(alive_,
                             [this](Result<bool> exists) {
                               if (!exists.ok()) return Retry(exists.error());
                               if (*exists) return ReadNames();
                               ReadData({});
                             }),
                  names_watch_);
}

void ChildrenWatcher::ReadData(std::vector<std::string> names) {
  const std::size_t before = children_.size();
  std::erase_if(children_, [&](const auto& child) {
    return !std::binary_search(names.begin(), names.end(), child.first);
  });
  if (children_.size() != before) changed_ = true;
  std::erase_if(names, [&](const std::string& name) {
    return children_.count(name) != 0 && stale_.count(name) == 0;
  });
  stale_.clear();  // an event from here on marks its child again
  reads_open_ = names.size();
  if (names.empty()) return Finish();
  for (const std::string& name : names) {
    session_.Get(Join(path_, name),
                 WhileAlive(alive_,
                            [this, name](Result<NodeValue> value) {
                              if (value.ok()) {
                                const auto found = children_.find(name);
                                if (found == children_.end() || !SameValue(found->second, *value)) {
                                  changed_ = true;
                                  children_[name] = std::move(value).value();
                                }
                              } else if (value.error().code == ErrorCode::kNotFound) {
                                if (children_.erase(name) != 0) changed_ = true;
                              } else {
                                read_error_ = value.error();
                                stale_.insert(name);
                              }
                              if (--reads_open_ == 0) Finish();
                            }),
                 data_watch_);
  }
}

void ChildrenWatcher::Finish() {
  if (read_error_) return Retry(*read_error_);
  reading_ = false;
  const bool tell = !told_ || changed_;
  told_ = true;
  changed_ = false;
  if (read_again_ || !stale_.empty()) Refresh();
  if (!tell) return;
  // The callback may destroy this object.
  const Callback callback = callback_;
  const Children children = children_;
  callback(children);
}

void ChildrenWatcher::Retry(const Error& error) {
  reading_ = false;
  // Children whose reads failed are read again; their watches may be gone.
  for (const auto& child : children_) stale_.insert(child.first);
  spdlog::debug("zookeeper: watching the children of {}: {}", path_, error.message);
  retry_timer_.expires_after(session_.session_timeout() / 4);
  retry_timer_.async_wait(WhileAlive(alive_, [this](const boost::system::error_code& cancelled) {
    if (!cancelled) Refresh();
  }));
}

}  // namespace ps::zk
