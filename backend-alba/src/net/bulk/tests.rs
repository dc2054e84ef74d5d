use proptest::prelude::*;

use super::*;

/// A body of these frames.
struct Frames(VecDeque<Frame<Bytes>>);

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Status;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

fn cut(bytes: &Bytes, lens: &[usize]) -> VecDeque<Frame<Bytes>> {
    let (mut left, mut frames) = (bytes.clone(), VecDeque::new());
    for len in lens {
        frames.push_back(Frame::data(left.split_to((*len).min(left.len()))));
    }
    frames.push_back(Frame::data(left));
    frames
}

fn put_requests(lens: &[usize]) -> Vec<wire::PutRequest> {
    let header = wire::PutHeader { name: "x".into(), len: 9, ..Default::default() };
    let header = wire::put_request::Part::Header(header);
    let chunk = |len: &usize| wire::put_request::Part::Chunk(vec![*len as u8; *len].into());
    let parts = std::iter::once(header).chain(lens.iter().map(chunk));
    parts.map(|part| wire::PutRequest { part: Some(part) }).collect()
}

/// As the generated code sends them.
fn generated(messages: &[wire::PutRequest]) -> Bytes {
    messages.iter().map(whole).collect::<Vec<_>>().concat().into()
}

/// What arrives: the messages that came as such, and all bytes of chunks.
async fn receive(
    frames: VecDeque<Frame<Bytes>>,
) -> Result<(Vec<wire::PutRequest>, Vec<u8>), Status> {
    let mut receiver = Receiver::<wire::PutRequest>::of_request(Body::new(Frames(frames)));
    let (mut messages, mut bytes) = (Vec::new(), Vec::new());
    while let Some(item) = receiver.next().await? {
        match item {
            Item::Message(message) => messages.push(message),
            Item::Bytes(more) => {
                assert!(!more.is_empty());
                bytes.extend_from_slice(&more);
            }
        }
    }
    Ok((messages, bytes))
}

fn now<T>(work: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(work).expect("nothing to wait for")
}

/// All that a body gives, and its trailers.
fn drained(mut body: Body) -> (Bytes, Option<HeaderMap>) {
    let (mut bytes, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = now(std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))) {
        match frame.unwrap().into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    (bytes.freeze(), trailers)
}

proptest! {
    #[test]
    fn however_it_is_cut_it_arrives(
        chunks in proptest::collection::vec(0usize..40_000, 0..6),
        lens in proptest::collection::vec(0usize..20_000, 0..40),
        small in proptest::collection::vec(0usize..4, 0..200),
    ) {
        let sent = put_requests(&chunks);
        let bytes: Vec<u8> = chunks.iter().flat_map(|len| vec![*len as u8; *len]).collect();
        for lens in [&lens, &small] {
            let (messages, arrived) = now(receive(cut(&generated(&sent), lens))).unwrap();
            prop_assert_eq!(&messages, &sent[..1]);
            prop_assert_eq!(&arrived, &bytes);
        }
    }

    #[test]
    fn whatever_is_cut_off_is_an_error(
        chunks in proptest::collection::vec(0usize..300, 1..4), at in 0usize..1000,
    ) {
        let sent = put_requests(&chunks);
        let whole = generated(&sent);
        let ends: Vec<usize> = (0..=sent.len()).map(|n| generated(&sent[..n]).len()).collect();
        let at = at % whole.len();
        let outcome = now(receive(cut(&whole.slice(..at), &[])));
        prop_assert_eq!(outcome.is_ok(), ends.contains(&at));
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = now(receive(cut(&bytes.into(), &[3, 7])));
    }
}

#[test]
fn what_is_sent_is_what_the_generated_code_sends() {
    let requests = put_requests(&[1, 127, 128, 70_000, 0]);
    let parts = requests.iter().map(|request| match &request.part {
        Some(wire::put_request::Part::Chunk(chunk)) => Ok(Part::Chunk(chunk.clone())),
        _ => Ok(Part::Message(request.clone())),
    });
    let parts: Vec<_> = parts.collect();
    let (bytes, trailers) = drained(body(stream::iter(parts.clone()), Side::Client));
    assert_eq!((bytes, trailers), (generated(&requests), None));
    let (bytes, trailers) = drained(body(stream::iter(parts), Side::Server));
    assert_eq!(bytes, generated(&requests));
    assert_eq!(Status::from_header_map(&trailers.unwrap()).unwrap().code(), tonic::Code::Ok);
    assert_eq!(whole(&requests[1])[..], [0, 0, 0, 0, 3, 0x12, 1, 1]);
}

#[test]
fn chunks_of_an_asd_are_what_the_generated_code_sends() {
    let chunk = |len: usize| Bytes::from(vec![len as u8; len]);
    for len in [0, 1, 127, 128, 1 << 20] {
        let read = osd::ReadResponse { chunk: chunk(len) };
        let sent = stream::iter([Ok(Part::<osd::ReadResponse>::Chunk(chunk(len)))]);
        // An empty chunk may be said in either way.
        let empty: &[u8] = &[0, 0, 0, 0, 2, 10, 0];
        let whole_read = if len == 0 { Bytes::from_static(empty) } else { whole(&read) };
        assert_eq!(drained(body(sent, Side::Server)).0, whole_read);
        let part = Some(osd::write_request::Part::Chunk(chunk(len)));
        let sent = stream::iter([Ok(Part::<osd::WriteRequest>::Chunk(chunk(len)))]);
        assert_eq!(drained(body(sent, Side::Client)).0, whole(&osd::WriteRequest { part }));
    }
}

#[test]
fn a_chunk_with_other_fields_or_too_long_is_a_message() {
    let chunk = wire::GetRangeResponse { info: None, chunk: vec![7; 100].into() };
    let mut twice = whole(&chunk).to_vec();
    twice.extend_from_slice(&whole(&chunk)[5..]);
    twice[4] *= 2;
    let long = wire::GetRangeResponse { info: None, chunk: vec![7; (1 << 20) + 1].into() };
    for bytes in [Bytes::from(twice), whole(&long)] {
        let frames = Frames(cut(&bytes, &[]));
        let mut receiver = Receiver::<wire::GetRangeResponse>::of_request(Body::new(frames));
        let item = now(receiver.next()).unwrap().unwrap();
        assert!(matches!(item, Item::Message(message) if !message.chunk.is_empty()));
    }
}

#[test]
fn an_answer_without_a_good_status_is_none() {
    let mut good = HeaderMap::new();
    Status::new(tonic::Code::Ok, "").add_header(&mut good).unwrap();
    let mut bad = HeaderMap::new();
    Status::data_loss("damaged").add_header(&mut bad).unwrap();
    let answer = whole(&wire::PutResponse { outcome: 1 });
    let receive = |trailers: Option<HeaderMap>, times: usize| {
        let mut frames: VecDeque<_> = (0..times).map(|_| Frame::data(answer.clone())).collect();
        frames.extend(trailers.map(Frame::trailers));
        let body = Body::new(Frames(frames));
        now(Receiver::<wire::PutResponse>::new(body, Side::Client).only())
    };
    assert_eq!(receive(Some(good.clone()), 1).unwrap().outcome, 1);
    assert_eq!(receive(Some(bad), 1).unwrap_err().code(), tonic::Code::DataLoss);
    assert_eq!(receive(None, 1).unwrap_err().code(), tonic::Code::Unavailable);
    assert!(receive(Some(good.clone()), 0).is_err());
    assert!(receive(Some(good), 2).is_err());
}

#[test]
fn what_is_compressed_or_too_long_is_refused() {
    for (prefix, code) in [
        ([1, 0, 0, 0, 0], tonic::Code::Unimplemented),
        ([0, 0xff, 0, 0, 0], tonic::Code::OutOfRange),
    ] {
        let refused = now(receive(cut(&Bytes::copy_from_slice(&prefix), &[]))).unwrap_err();
        assert_eq!(refused.code(), code);
    }
}
