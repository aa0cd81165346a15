//! Images, sounds and files in messages: where they are, by every dialect's form. Their bytes
//! stay in the span; a conversation refers to them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use obs_model::{Media, MediaAt};
use serde_json::Value as Json;

fn text<'a>(v: &'a Json, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|k| v.get(k)).and_then(Json::as_str).filter(|s| !s.is_empty())
}

/// The kind of a content type: `image` of `image/png`.
fn modality_of(mime: &str) -> &str {
    match mime.split_once('/') {
        Some((kind @ ("image" | "audio" | "video"), _)) => kind,
        Some(_) => "document",
        None => "",
    }
}

/// Reads an address: what a `data:` URL holds is inline.
fn located(address: &str, mime: &str) -> (String, MediaAt) {
    let Some(rest) = address.strip_prefix("data:") else {
        return (mime.to_owned(), MediaAt::Uri(address.to_owned()));
    };
    let (head, data) = rest.split_once(',').unwrap_or((rest, ""));
    let own = head.split(';').next().unwrap_or_default();
    let mime = if own.is_empty() { mime } else { own };
    (mime.to_owned(), MediaAt::Inline(data.to_owned()))
}

/// Langfuse's SDKs put a mark where media was: `@@@langfuseMedia:type=image/png|id=X|source=Y@@@`.
pub(crate) fn langfuse_mark(content: &str) -> Option<Media> {
    let inner = content.strip_prefix("@@@langfuseMedia:")?.strip_suffix("@@@")?;
    let field = |name: &str| {
        inner.split('|').find_map(|f| f.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let mime = field("type");
    Some(Media {
        modality: modality_of(mime).to_owned(),
        mime_type: mime.to_owned(),
        at: MediaAt::File(field("id").to_owned()),
    })
}

/// Reads a part of a message that is no text: OpenTelemetry's `blob`, `file` and `uri`, and the
/// forms of OpenAI, Anthropic, Gemini and the AI SDK. `None` if it refers to nothing.
pub(crate) fn media(v: &Json) -> Option<Media> {
    let kind = v.get("type").and_then(Json::as_str).unwrap_or_default();
    let mime = |v: &Json| {
        text(v, &["mime_type", "media_type", "mimeType", "mediaType"])
            .unwrap_or_default()
            .to_owned()
    };
    let named = text(v, &["modality"]).unwrap_or(match kind {
        "image" | "image_url" | "input_image" => "image",
        "audio" | "input_audio" => "audio",
        "video" | "input_video" => "video",
        "document" | "file" | "input_file" => "document",
        _ => "",
    });
    let made = |mime_type: String, at: MediaAt| {
        let modality = match modality_of(&mime_type) {
            "" | "document" if !named.is_empty() => named.to_owned(),
            own => own.to_owned(),
        };
        Some(Media { modality, mime_type, at })
    };
    let inner =
        ["source", "inline_data", "inlineData", "file_data", "fileData", "file", "input_audio"];
    let holder = inner.iter().find_map(|k| v.get(k).filter(|x| x.is_object())).unwrap_or(v);
    let mime_type = match (mime(holder), text(holder, &["format"])) {
        (m, Some(format)) if m.is_empty() => format!("audio/{format}"),
        (m, _) if m.is_empty() => mime(v),
        (m, _) => m,
    };
    // `image_url` is an object of Chat Completions and a text of Responses.
    let nested = ["image_url", "video_url", "file_url"].iter().find_map(|k| v.get(k));
    let nested = nested.and_then(|u| u.as_str().or_else(|| text(u, &["url"])));
    let address = nested
        .or_else(|| text(holder, &["uri", "url", "file_uri", "fileUri"]))
        .or_else(|| text(v, &["image", "audio", "video"]));
    if let Some(address) = address {
        if let Some(marked) = langfuse_mark(address) {
            return Some(marked);
        }
        let (mime_type, at) = located(address, &mime_type);
        return made(mime_type, at);
    }
    if let Some(id) = text(holder, &["file_id", "fileId"]) {
        return made(mime_type, MediaAt::File(id.to_owned()));
    }
    let data = ["data", "file_data", "bytes"];
    let data =
        text(holder, &data).or_else(|| text(holder, &["content"]).filter(|_| kind == "blob"));
    data.and_then(|data| {
        if data.starts_with("data:") {
            let (mime_type, at) = located(data, &mime_type);
            return made(mime_type, at);
        }
        made(mime_type, MediaAt::Inline(data.to_owned()))
    })
}

/// Decodes inline bytes; `None` if they are no base64.
pub fn inline_bytes(data: &str) -> Option<Vec<u8>> {
    let tidy: String = data.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let padded = STANDARD.decode(&tidy).or_else(|_| STANDARD_NO_PAD.decode(&tidy));
    padded.or_else(|_| URL_SAFE.decode(&tidy)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_refers_to_the_same() {
        let inline = |t: &str| MediaAt::Inline(t.into());
        let uri = MediaAt::Uri("https://x/cat.png".into());
        let file = MediaAt::File("f-1".into());
        let cases = [
            (
                r#"{"type":"blob","modality":"image","mime_type":"image/png","content":"iVBO"}"#,
                "image",
                "image/png",
                inline("iVBO"),
            ),
            (
                r#"{"type":"uri","modality":"image","uri":"https://x/cat.png"}"#,
                "image",
                "",
                uri.clone(),
            ),
            (
                r#"{"type":"file","modality":"video","mime_type":"video/mp4","file_id":"f-1"}"#,
                "video",
                "video/mp4",
                file.clone(),
            ),
            (
                r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBO"}}"#,
                "image",
                "image/png",
                inline("iVBO"),
            ),
            (r#"{"type":"input_image","image_url":"https://x/cat.png"}"#, "image", "", uri.clone()),
            (
                r#"{"type":"input_audio","input_audio":{"data":"UklG","format":"wav"}}"#,
                "audio",
                "audio/wav",
                inline("UklG"),
            ),
            (r#"{"type":"file","file":{"file_id":"f-1"}}"#, "document", "", file.clone()),
            (
                r#"{"type":"file","file":{"filename":"a.pdf","file_data":"data:application/pdf;base64,JVBE"}}"#,
                "document",
                "application/pdf",
                inline("JVBE"),
            ),
            (
                r#"{"type":"image","source":{"type":"base64","media_type":"image/jpeg","data":"/9j/"}}"#,
                "image",
                "image/jpeg",
                inline("/9j/"),
            ),
            (
                r#"{"type":"image","source":{"type":"url","url":"https://x/cat.png"}}"#,
                "image",
                "",
                uri.clone(),
            ),
            (
                r#"{"type":"document","source":{"type":"file","file_id":"f-1"}}"#,
                "document",
                "",
                file.clone(),
            ),
            (
                r#"{"type":"x","inline_data":{"mime_type":"audio/mp3","data":"SUQz"}}"#,
                "audio",
                "audio/mp3",
                inline("SUQz"),
            ),
            (
                r#"{"type":"x","file_data":{"mime_type":"image/png","file_uri":"https://x/cat.png"}}"#,
                "image",
                "image/png",
                uri.clone(),
            ),
            (r#"{"type":"image","image":"https://x/cat.png"}"#, "image", "", uri),
            (
                r#"{"type":"image_url","image_url":{"url":"@@@langfuseMedia:type=image/png|id=f-1|source=base64_data_uri@@@"}}"#,
                "image",
                "image/png",
                file,
            ),
        ];
        for (form, modality, mime, at) in cases {
            let v: Json = serde_json::from_str(form).unwrap();
            let found = media(&v).unwrap_or_else(|| panic!("{form}"));
            assert_eq!(
                (found.modality.as_str(), found.mime_type.as_str(), &found.at),
                (modality, mime, &at),
                "{form}"
            );
        }
        for none in [
            r#"{"type":"refusal"}"#,
            r#"{"type":"image"}"#,
            r#"{"type":"compaction","content":"x"}"#,
            "3",
        ] {
            assert_eq!(media(&serde_json::from_str(none).unwrap()), None, "{none}");
        }
    }

    #[test]
    fn bytes_are_read_with_and_without_padding() {
        assert_eq!(inline_bytes("aGk=").as_deref(), Some(&b"hi"[..]));
        assert_eq!(inline_bytes("aG\nk").as_deref(), Some(&b"hi"[..]));
        assert_eq!(inline_bytes("_-8=").as_deref(), Some(&[0xff, 0xef][..]));
        assert_eq!(inline_bytes("no base64!"), None);
    }
}
