"""Pairs of topic models: latent Dirichlet allocation with an amortised guide, in four versions, and ProdLDA."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from vinb.models.pairs.layers import dense, draws, standardize
from vinb.models.pairs.pair import Pair, sized


def lda(scale: str) -> Pair:
    """Latent Dirichlet allocation, its guide a network from a document's histogram to its topics (lee2020verifiedsvi,
    lee2023smoothness). The guide's ``doc_topics`` is a point mass, and it has no ``word_topics``, which an enumerating objective
    sums out. Documents are subsampled."""
    return _lda("lda", scale, lambda topics: dist.Delta(topics, event_dim=1))


def lda_original(scale: str) -> Pair:
    """:func:`lda` under the name that it has among the pairs of lee2020verifiedsvi."""
    return lda(scale)._replace(name="lda_original")


def lda_edited_1(scale: str) -> Pair:
    """:func:`lda` whose guide draws ``doc_topics`` from a Dirichlet distribution, and still has no ``word_topics``
    (lee2020verifiedsvi)."""
    return _lda("lda_edited_1", scale, dist.Dirichlet)


def lda_edited_2(scale: str) -> Pair:
    """:func:`lda_edited_1` whose guide also draws ``word_topics``, from its exact conditional (lee2020verifiedsvi)."""
    return _lda("lda_edited_2", scale, dist.Dirichlet, with_word_topics=True)


def _lda(name, scale, doc_topics_posterior, with_word_topics=False):
    num_topics, num_words, num_docs, batch_size, doc_length, hidden = sized(
        scale, small=(3, 7, 8, 4, 5, 4), original=(8, 1024, 1000, 32, 64, 100)
    )

    def documents():
        return numpyro.plate("documents", num_docs, subsample_size=batch_size, dim=-1)

    def model(words):
        with numpyro.plate("topics", num_topics):
            topic_weights = numpyro.sample("topic_weights", dist.Gamma(1 / num_topics, 1.0))
            topic_words = numpyro.sample("topic_words", dist.Dirichlet(np.full(num_words, 1 / num_words)))
        with documents() as batch:
            doc_topics = numpyro.sample("doc_topics", dist.Dirichlet(topic_weights))
            with numpyro.plate("words", doc_length, dim=-2):
                word_topics = numpyro.sample(
                    "word_topics", dist.Categorical(doc_topics), infer={"enumerate": "parallel"}
                )
                numpyro.sample(
                    "doc_words", dist.Categorical(topic_words[word_topics]), obs=jnp.asarray(words)[:, batch]
                )

    def guide(words):
        weights_posterior = numpyro.param(
            "topic_weights_posterior", jnp.ones(num_topics), constraint=constraints.positive
        )
        words_posterior = numpyro.param(
            "topic_words_posterior", jnp.full((num_topics, num_words), 0.5), constraint=constraints.positive
        )
        widths = (num_words, hidden, hidden, num_topics)
        layers = [dense(f"layer{i}", *widths[i - 1 : i + 1]) for i in (1, 2, 3)]
        with numpyro.plate("topics", num_topics):
            numpyro.sample("topic_weights", dist.Gamma(weights_posterior, 1.0))
            topic_words = numpyro.sample("topic_words", dist.Dirichlet(words_posterior + 0.5))
        with documents() as batch:
            batch_words = jnp.asarray(words)[:, batch]
            values = jax.nn.one_hot(batch_words, num_words).sum(0)
            for layer in layers:
                values = jax.nn.sigmoid(layer(values))
            doc_topics = numpyro.sample("doc_topics", doc_topics_posterior(jax.nn.softmax(values)))
            if with_word_topics:
                of_words = jnp.moveaxis(topic_words[:, batch_words], 0, -1)
                with numpyro.plate("words", doc_length, dim=-2):
                    logits = jnp.log(doc_topics) + jnp.log(of_words)
                    numpyro.sample("word_topics", dist.Categorical(logits=logits))

    words = np.random.default_rng(0).integers(num_words, size=(doc_length, num_docs))
    return Pair(name, model, guide, (words,))


def prodlda(scale: str) -> Pair:
    """ProdLDA: documents as multinomial counts, topics a softmax of a normal vector, a softplus encoder (lee2023smoothness).

    Batch normalisation has no parameters here. The masks of dropout, the model's and the guide's, are arguments.
    """
    topics, vocabulary, documents, hidden = sized(scale, small=(3, 8, 4, 5), original=(20, 12722, 32, 100))
    dropout = 0.2

    def model(docs, kept_topics, kept_hidden):
        beta = numpyro.param("decoder_beta", lambda _: draws(topics, vocabulary))
        with numpyro.plate("documents", documents):
            logtheta = numpyro.sample("logtheta", dist.Normal(jnp.zeros(topics), 1.0).to_event(1))
            theta = jax.nn.softmax(logtheta) * kept_topics / (1 - dropout)
            probs = jax.nn.softmax(standardize(theta @ beta))
            numpyro.sample("obs", dist.Multinomial(docs.sum(-1), probs), obs=docs)

    def guide(docs, kept_topics, kept_hidden):
        fc1, fc2 = dense("encoder_fc1", vocabulary, hidden), dense("encoder_fc2", hidden, hidden)
        fcmu, fclv = dense("encoder_fcmu", hidden, topics), dense("encoder_fclv", hidden, topics)
        values = jax.nn.softplus(fc2(jax.nn.softplus(fc1(docs)))) * kept_hidden / (1 - dropout)
        loc, log_variance = standardize(fcmu(values)), standardize(fclv(values))
        with numpyro.plate("documents", documents):
            numpyro.sample("logtheta", dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1))

    random = np.random.default_rng(0)
    docs = random.poisson(1.0, (documents, vocabulary))
    kept = [(random.random((documents, n)) > dropout).astype(np.float32) for n in (topics, hidden)]
    return Pair("prodlda", model, guide, (docs, *kept))
