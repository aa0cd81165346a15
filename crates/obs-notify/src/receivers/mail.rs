//! Mail over SMTP.

use super::{Attempt, Outcome};
use crate::config::Email;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use std::time::Duration;

fn failed(what: &str, e: &dyn std::fmt::Display) -> Outcome {
    Outcome::failed(format!("{what}: {e}"))
}

/// Puts together the message: `multipart/alternative` of text and HTML, as far as they are given.
fn message(a: &Attempt<'_>, c: &Email) -> Result<Message, Outcome> {
    let mailbox = |what: &str, text: &str| {
        a.text(text).trim().parse::<Mailbox>().map_err(|e| failed(&format!("{what} address"), &e))
    };
    let from = c.from.clone().unwrap_or_default();
    let mut b: MessageBuilder = Message::builder().from(mailbox("from", &from)?);
    let header =
        |name: &str| c.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|h| h.1);
    for one in a.text(&c.to).split(',').map(str::trim).filter(|t| !t.is_empty()) {
        b = b.to(one
            .parse()
            .map_err(|e: lettre::address::AddressError| failed("to address", &e))?);
    }
    let line = |t: &str| a.text(t).replace(['\r', '\n'], " ");
    b = b.subject(line(
        header("subject").map_or("{{ template \"email.default.subject\" . }}", String::as_str),
    ));
    let host = c.hello.clone().unwrap_or_else(|| "localhost".into());
    b = b.message_id(Some(format!("<{}@{host}>", a.n.idempotency_key)));
    let mut m = b;
    for (name, value) in &c.headers {
        if ["subject", "to", "from", "date", "message-id"]
            .iter()
            .any(|n| name.eq_ignore_ascii_case(n))
        {
            continue;
        }
        let known = HeaderName::new_from_ascii(name.clone()).map_err(|e| failed("header", &e))?;
        m = m.raw_header(HeaderValue::new(known, line(value)));
    }
    let html = if c.html.is_empty() { None } else { Some(a.html(&c.html)) };
    let text = if c.text.is_empty() { None } else { Some(a.text(&c.text)) };
    let built = match (text, html) {
        (text, Some(Err(e))) => {
            m.header(ContentType::TEXT_PLAIN).body(text.unwrap_or_else(|| a.plain(&e)))
        }
        (None, Some(Ok(h))) => {
            m.multipart(MultiPart::alternative().singlepart(SinglePart::html(h)))
        }
        (Some(t), Some(Ok(h))) => m.multipart(MultiPart::alternative_plain_html(t, h)),
        (Some(t), None) => m.multipart(MultiPart::alternative().singlepart(SinglePart::plain(t))),
        (None, None) => m.header(ContentType::TEXT_PLAIN).body(String::new()),
    };
    built.map_err(|e| failed("message", &e))
}

fn tls(a: &Attempt<'_>, c: &Email, host: &str) -> Result<TlsParameters, Outcome> {
    let t = c.tls_config.clone().unwrap_or_default();
    let mut b = TlsParameters::builder(t.server_name.clone().unwrap_or_else(|| host.to_owned()))
        .dangerous_accept_invalid_certs(t.insecure_skip_verify);
    let ca = match (&t.ca, &t.ca_file) {
        (None, None) => None,
        (value, file) => Some(a.secret(value.as_ref(), file.as_ref())?),
    };
    if let Some(pem) = ca {
        let list =
            Certificate::from_pem(pem.as_bytes()).map_err(|e| failed("tls_config.ca", &e))?;
        b = b.certificate_store(CertificateStore::None).add_root_certificate(list);
    }
    b.build().map_err(|e| failed("tls_config", &e))
}

pub(super) async fn email(a: &Attempt<'_>, c: &Email) -> Result<Outcome, Outcome> {
    let smarthost = c.smarthost.clone().unwrap_or_default();
    let (host, port) = smarthost.rsplit_once(':').unwrap_or((&smarthost, "25"));
    let host = host.trim_matches(['[', ']']);
    let port: u16 = port.parse().map_err(|e| failed("smarthost", &e))?;
    let addresses = a.sender.outbound.resolve(host, port).await;
    let address = addresses.map_err(Outcome::retry)?;
    let Some(address) = address.first() else { return Err(Outcome::failed("no address")) };
    let message = message(a, c)?;
    let parameters = tls(a, c, host)?;
    let mode = match (port, c.require_tls.unwrap_or(true)) {
        (465, _) => Tls::Wrapper(parameters),
        (_, true) => Tls::Required(parameters),
        (_, false) => Tls::Opportunistic(parameters),
    };
    // The address that was judged is the one that is connected to.
    let mut b = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(address.ip().to_string())
        .port(port)
        .tls(mode)
        .timeout(Some(Duration::from_secs(10)))
        .hello_name(ClientId::Domain(c.hello.clone().unwrap_or_else(|| "localhost".into())));
    let password = a.secret(c.auth_password.as_ref(), c.auth_password_file.as_ref())?;
    if let Some(user) = c.auth_username.clone().filter(|u| !u.is_empty()) {
        b = b
            .credentials(Credentials::new(user, password))
            .authentication(vec![Mechanism::Plain, Mechanism::Login]);
    }
    match b.build().send(message).await {
        Ok(_) => Ok(Outcome::sent()),
        Err(e) => {
            let why = e.status().map_or_else(
                || "the mail was not taken".to_owned(),
                |s| format!("the mail server answered {s}"),
            );
            let why =
                if e.is_timeout() { "the mail server did not answer in time".into() } else { why };
            Err(if e.is_permanent() {
                Outcome::Failed { why }
            } else {
                Outcome::Retry { why, after: None, may_have_arrived: e.is_timeout() }
            })
        }
    }
}
