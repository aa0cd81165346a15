//! Provider names of all dialects, as OpenTelemetry's `gen_ai.provider.name` values.

/// Returns the canonical name; unknown ones pass through in lower case.
pub(crate) fn canonical(raw: &str, system: &str) -> String {
    // MLflow writes JSON texts.
    let lower = raw.trim().trim_matches('"').to_ascii_lowercase();
    // AI SDK: `openai.chat`, `openai.responses`, `anthropic.messages`.
    let head = lower.split('.').next().unwrap_or_default();
    let sdk = matches!(
        head,
        "openai"
            | "anthropic"
            | "mistral"
            | "cohere"
            | "groq"
            | "google"
            | "deepseek"
            | "xai"
            | "perplexity"
    );
    let vertex = lower.starts_with("google.vertex");
    let name = if sdk && !vertex { head } else { lower.as_str() };
    let system = system.trim().to_ascii_lowercase();
    match name {
        n if n.starts_with("google.vertex") || n.starts_with("vertex.") => "gcp.vertex_ai",
        n if n.starts_with("azure.") && !n.starts_with("azure.ai.") => "azure.ai.openai",
        "together" | "together_ai" | "togetherai" | "together.ai" => "together",
        "fireworks" | "fireworks_ai" | "fireworks.ai" => "fireworks",
        "cohere_chat" => "cohere",
        "azure-openai" | "azure" | "az.ai.openai" | "azure_openai" | "azure.ai.openai" => {
            "azure.ai.openai"
        }
        "az.ai.inference" | "azure.ai.inference" => "azure.ai.inference",
        "vertex_ai" | "vertexai" | "gcp.vertex_ai" => "gcp.vertex_ai",
        "google" if system.contains("vertex") => "gcp.vertex_ai",
        "google" | "gemini" | "google_genai" | "gcp.gemini" => "gcp.gemini",
        "aws" | "amazon" | "amazon-bedrock" | "bedrock" | "bedrock_converse" | "aws_bedrock"
        | "aws.bedrock" => "aws.bedrock",
        "mistral" | "mistralai" | "mistral_ai" => "mistral_ai",
        "xai" | "x_ai" => "x_ai",
        "moonshot" | "moonshot_ai" => "moonshot_ai",
        "watsonx" | "ibm" | "ibm.watsonx.ai" => "ibm.watsonx.ai",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn names_of_every_dialect_meet() {
        let cases = [
            ("OpenAI", "", "openai"),
            ("openai.chat", "", "openai"),
            ("azure", "openai", "azure.ai.openai"),
            ("google", "vertexai", "gcp.vertex_ai"),
            ("xai", "", "x_ai"),
            ("ollama", "", "ollama"),
            ("aws.bedrock", "", "aws.bedrock"),
        ];
        for (raw, system, want) in cases {
            assert_eq!(canonical(raw, system), want);
        }
    }
}
