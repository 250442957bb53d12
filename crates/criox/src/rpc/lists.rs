//! ListPodSandbox and ListContainers, which a kubelet asks each second: put together from entries that were encoded once
//! for each state of their pod, where the generated service would make and encode all of them anew.

use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::task::{Context, Poll};

use criox_cri::v1;
use hyper::body::Incoming;
use prost::Message;
use prost::bytes::{BufMut as _, Bytes};
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::{ProstCodec, ProstDecoder};

use super::Services;
use super::fit::{self, fit};
use crate::server::MESSAGE_MAX;

const PODS: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";

/// Answers a request for one of the two lists; gives any other back.
pub(crate) async fn answer(
    request: http::Request<Incoming>,
    services: &Services,
) -> Result<http::Response<Body>, http::Request<Incoming>> {
    match request.uri().path() {
        PODS => Ok(unary(request, services, |services, list: &v1::ListPodSandboxRequest| {
            let filter = list.filter.as_ref();
            let entries = services.lifecycle.encoded_pods(filter);
            within(entries, fit::LIMIT, || v1::ListPodSandboxResponse {
                items: fit(services.lifecycle.list_pod_sandboxes(filter)),
            })
        })
        .await),
        CONTAINERS => Ok(unary(request, services, |services, list: &v1::ListContainersRequest| {
            let filter = list.filter.as_ref();
            let entries = services.lifecycle.encoded_containers(filter);
            within(entries, fit::LIMIT, || v1::ListContainersResponse {
                containers: fit(services.lifecycle.list_containers(filter)),
            })
        })
        .await),
        _ => Err(request),
    }
}

/// The entries, or the message that fits in their place.
fn within<M: Message>(entries: Vec<Bytes>, limit: usize, fitted: impl FnOnce() -> M) -> Vec<Bytes> {
    match entries.iter().map(Bytes::len).sum::<usize>() {
        length if length <= limit => entries,
        _ => vec![fitted().encode_to_vec().into()],
    }
}

async fn unary<R: Message + Default + 'static>(
    request: http::Request<Incoming>,
    services: &Services,
    list: fn(&Services, &R) -> Vec<Bytes>,
) -> http::Response<Body> {
    let service = List { services: services.clone(), list };
    let mut grpc = Grpc::new(Encoded(PhantomData)).max_decoding_message_size(MESSAGE_MAX);
    grpc.unary(service, request).await
}

/// One of the lists, as tonic wants it.
struct List<R> {
    services: Services,
    list: fn(&Services, &R) -> Vec<Bytes>,
}

impl<R> tower::Service<Request<R>> for List<R> {
    type Response = Response<Vec<Bytes>>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        ready(Ok(Response::new((self.list)(&self.services, request.get_ref()))))
    }
}

/// Messages that are encoded already, in pieces.
struct Encoded<R>(PhantomData<R>);

impl<R: Message + Default + 'static> Codec for Encoded<R> {
    type Encode = Vec<Bytes>;
    type Decode = R;
    type Encoder = Pieces;
    type Decoder = ProstDecoder<R>;

    fn encoder(&mut self) -> Pieces {
        Pieces
    }

    fn decoder(&mut self) -> ProstDecoder<R> {
        ProstCodec::<(), R>::raw_decoder(BufferSettings::default())
    }
}

struct Pieces;

impl Encoder for Pieces {
    type Item = Vec<Bytes>;
    type Error = Status;

    fn encode(&mut self, pieces: Vec<Bytes>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(pieces.iter().map(Bytes::len).sum());
        for piece in pieces {
            buffer.put(piece);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(id: &str) -> Bytes {
        let containers = vec![v1::Container { id: id.to_owned(), ..Default::default() }];
        v1::ListContainersResponse { containers }.encode_to_vec().into()
    }

    #[test]
    fn pieces_one_after_the_other_are_the_whole_message() {
        let bytes = ["a", "b"].map(piece).concat();
        let whole = v1::ListContainersResponse::decode(bytes.as_slice()).expect("a message");
        let ids: Vec<_> = whole.containers.iter().map(|container| container.id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
    }

    #[test]
    fn a_list_beyond_the_limit_is_the_fitted_one() {
        let entries = || vec![piece("one"), piece("two")];
        let length = entries().iter().map(Bytes::len).sum();
        let fitted = || v1::ListContainersResponse::default();
        assert_eq!(within(entries(), length, fitted), entries());
        assert_eq!(within(entries(), length - 1, fitted), [Bytes::new()]);
    }
}
