#include "tests/cli/fake_coordinator.h"

namespace ps::cli {

FakeCoordinator::FakeCoordinator(Handler handler, const net::TlsFiles& tls)
    : server_(std::make_unique<net::HttpServer>(loop_, "127.0.0.1", 0)) {
  server_->OnRequest([this, handler = std::move(handler)](const net::HttpRequest& request,
                                                          net::Responder responder) {
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request.method + " " + request.target);
      last_body_ = request.body;
      const auto header = request.headers.find("authorization");
      last_authorization_ = header == request.headers.end() ? "" : header->second;
    }
    responder.Answer(handler(request));
  });
  if (tls.given()) server_->UseTls(net::OpenServerTls(tls).value().context);
  const auto address = server_->Start();
  PS_CHECK(address.ok());
  url_ = (tls.given() ? "https://" : "http://") + address.value();
  thread_ = std::thread([this] { loop_.Run(); });
}

FakeCoordinator::~FakeCoordinator() {
  loop_.Stop();
  thread_.join();
  server_.reset();
}

std::vector<std::string> FakeCoordinator::requests() const {
  const std::lock_guard lock(mutex_);
  return requests_;
}

std::string FakeCoordinator::last_body() const {
  const std::lock_guard lock(mutex_);
  return last_body_;
}

std::string FakeCoordinator::last_authorization() const {
  const std::lock_guard lock(mutex_);
  return last_authorization_;
}

net::HttpResponse Answer(int status, const std::string& json) {
  net::HttpResponse response;
  response.status = status;
  response.body = json;
  return response;
}

net::HttpResponse AnswerError(int status, ErrorId id, const std::string& message) {
  return net::ErrorResponse(status, {id, message});
}

}  // namespace ps::cli
