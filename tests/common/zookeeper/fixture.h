// What the tests of common/zookeeper share: a real ZooKeeper, and operations that wait.
#pragma once

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/zookeeper/session.h"
#include "tests/support/run_until.h"
#include "tests/support/zookeeper_server.h"

namespace ps::zk {

using std::chrono::milliseconds;
using test::RunFor;
using test::RunUntil;
using test::ZooKeeperServer;

// Opens the session of `credentials` a second time and closes it, so that the server ends it.
void ExpireSession(const std::string& address, const Session::Credentials& credentials);

class ZooKeeperTest : public testing::Test {
 protected:
  // The server of all tests of this program that do it no harm.
  static ZooKeeperServer& SharedServer();
  static std::unique_ptr<ZooKeeperServer> OwnServer();

  // Sessions of one test share a chroot that no other test has.
  std::unique_ptr<Session> Open(const std::string& address, milliseconds timeout) {
    auto session = Prepare(address, timeout);
    EXPECT_TRUE(RunUntil(io_, [&] { return session->connected(); })) << session->Trouble();
    const Status ensured = Ensure(*session, "/");
    EXPECT_TRUE(ensured.ok()) << ensured.error().message;
    return session;
  }
  std::unique_ptr<Session> Open() { return Open(SharedServer().address(), milliseconds(10'000)); }

  // Started, not yet connected.
  std::unique_ptr<Session> Prepare(const std::string& address, milliseconds timeout) {
    Session::Options options;
    const auto* const info = testing::UnitTest::GetInstance()->current_test_info();
    options.hosts = address + "/tests/" + info->name();
    options.session_timeout = timeout;
    auto session = std::make_unique<Session>(io_, options);
    const Status started = session->Start();
    EXPECT_TRUE(started.ok());
    return session;
  }

  template <typename T, typename Begin>
  T Await(Begin begin) {
    auto slot = std::make_shared<std::optional<T>>();
    begin([slot](T value) { slot->emplace(std::move(value)); });
    EXPECT_FALSE(slot->has_value()) << "a callback ran within the call that took it";
    const bool done = RunUntil(io_, [&] { return slot->has_value(); });
    PS_CHECK(done, "an operation was not answered");
    return std::move(**slot);
  }

  Status Ensure(Session& session, const std::string& path) {
    return Await<Status>([&](auto done) { session.EnsurePath(path, done); });
  }
  Result<NodeValue> Get(Session& session, const std::string& path, Session::WatchId watch = 0) {
    return Await<Result<NodeValue>>([&](auto done) { session.Get(path, done, watch); });
  }
  Result<bool> Exists(Session& session, const std::string& path) {
    return Await<Result<bool>>([&](auto done) { session.Exists(path, done); });
  }
  Result<std::vector<std::string>> Children(Session& session, const std::string& path) {
    return Await<Result<std::vector<std::string>>>(
        [&](auto done) { session.Children(path, done); });
  }
  Result<std::string> Create(Session& session, const std::string& path, const std::string& data,
                             CreateMode mode = CreateMode::kPersistent) {
    return Await<Result<std::string>>([&](auto done) { session.Create(path, data, mode, done); });
  }
  Result<std::int32_t> Set(Session& session, const std::string& path, const std::string& data,
                           std::int32_t version = kAnyVersion) {
    return Await<Result<std::int32_t>>([&](auto done) { session.Set(path, data, version, done); });
  }
  Status Delete(Session& session, const std::string& path, std::int32_t version = kAnyVersion) {
    return Await<Status>([&](auto done) { session.Delete(path, version, done); });
  }
  MultiOutcome Multi(Session& session, const std::vector<Op>& ops) {
    return Await<MultiOutcome>([&](auto done) { session.Multi(ops, done); });
  }
  // Ends the session at the server, and waits until `session` has a new one.
  void Expire(Session& session, const std::string& address) {
    const std::int64_t old_id = session.session_id();
    for (int i = 0; i < 10 && session.session_id() == old_id; ++i) {
      ExpireSession(address, session.credentials());
      RunUntil(
          io_, [&] { return session.connected() && session.session_id() != old_id; },
          milliseconds(3000));
    }
    ASSERT_NE(session.session_id(), old_id);
  }

  boost::asio::io_context io_;
};

template <typename T>
ErrorCode CodeOf(const Result<T>& result) {
  EXPECT_FALSE(result.ok());
  return result.ok() ? ErrorCode::kInternal : result.error().code;
}

}  // namespace ps::zk
