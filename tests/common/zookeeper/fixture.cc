#include "tests/common/zookeeper/fixture.h"

#include <zookeeper/zookeeper.h>

#include <algorithm>
#include <atomic>
#include <thread>

namespace ps::zk {

void ExpireSession(const std::string& address, const Session::Credentials& credentials) {
  clientid_t id{};
  id.client_id = credentials.session_id;
  std::copy_n(credentials.password.data(), std::min(credentials.password.size(), sizeof(id.passwd)),
              id.passwd);
  std::atomic<int> state = 0;
  const auto watcher = [](zhandle_t*, int, int now, const char*, void* context) {
    if (now == ZOO_CONNECTED_STATE || now == ZOO_EXPIRED_SESSION_STATE) {
      *static_cast<std::atomic<int>*>(context) = now;
    }
  };
  // The session's owner connects again at once and may take the session back before the twin has
  // heard of its own connection; closing the twin may then have ended the session all the same, of
  // which the next twin is told.
  for (int attempt = 0; attempt < 20 && state == 0; ++attempt) {
    zhandle_t* const twin = zookeeper_init2(address.c_str(), watcher, 10'000, &id, &state,
                                            ZOO_NO_LOG_CLIENTENV, [](const char*) {});
    ASSERT_NE(twin, nullptr);
    for (int i = 0; i < 100 && state == 0; ++i) std::this_thread::sleep_for(milliseconds(5));
    zookeeper_close(twin);
  }
  EXPECT_NE(state, 0);
}

ZooKeeperServer& ZooKeeperTest::SharedServer() {
  static const std::unique_ptr<ZooKeeperServer> server = OwnServer();
  return *server;
}

std::unique_ptr<ZooKeeperServer> ZooKeeperTest::OwnServer() {
  auto server = ZooKeeperServer::Start();
  PS_CHECK(server.ok(), server.error().message);
  return std::move(server).value();
}

}  // namespace ps::zk
