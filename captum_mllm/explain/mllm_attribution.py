"""MLLMAttribution: explains every word of an answer at once, by the image and the earlier words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_mllm.attr.arguments import check_attribution
from captum_mllm.attr.segments import SegmentsLike
from captum_mllm.explain.answer_stream import AnswerStream
from captum_mllm.explain.batch import attribute_batch
from captum_mllm.explain.contrast_words import Contrast
from captum_mllm.explain.estimate import Mode
from captum_mllm.explain.explanation import Extras, check_arguments, explain
from captum_mllm.explain.fitting import ImageTokens, fit_to_context
from captum_mllm.explain.intervention import what_if
from captum_mllm.explain.result import MLLMAttributionResult
from captum_mllm.explain.selection import Selection
from captum_mllm.explain.stream import stream_answer
from captum_mllm.explain.word_changes import WhatIf
from captum_mllm.models.answers import generation_options
from captum_mllm.models.decoding import answer_prompts, given_answer
from captum_mllm.models.inputs import ImageTextInput, check_is_input
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.prompt import open_query


class MLLMAttribution(Attribution):
    r"""
    Attribution of the whole answer of a multimodal LLM, to the images and to the earlier words.

    It is what ``LLMAttribution`` is for language models: it takes an attribution method on an
    :class:`~captum_mllm.MLLM` and an input as people have it, and explains every token of the
    answer, the model's own or a given one. With methods that answer for all tokens in one call
    (LogitLens, AttendedLens, MSEA, TAM and ARC around them) that takes one forward pass for each
    scale; the words' own probabilities are read at scale 1, which takes one more where 1 is not
    among the scales. Other methods are asked for each token in turn, and a pass for each scale
    tells how probable the tokens are there.

    Args:
        attribution_method (Attribution): a method whose forward function is an MLLM.

    Raises:
        TypeError: if it is not.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import ARC, MLLM, MSEA, AttendedLens, ImageTextInput, MLLMAttribution
        >>> from captum_mllm.demo import demo_image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> explainer = MLLMAttribution(ARC(MSEA(AttendedLens(mllm))))
        >>> result = explainer.attribute(inp, target="a red circle")
        >>> result.output_tokens
        ['a', ' red', ' circle']
        >>> result.map(2).shape
        (224, 224)
    """

    def __init__(self, attribution_method: Attribution) -> None:
        check_attribution(attribution_method)
        super().__init__(attribution_method.forward_func)
        self.attribution_method = attribution_method

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.attribution_method.multiplies_by_inputs)

    @log_usage()
    def attribute(
        self,
        inp: ImageTextInput,
        target: str | Sequence[int] | Tensor | None = None,
        include_prompt: bool = False,
        top_predictions: int = 5,
        gen_args: dict[str, Any] | None = None,
        show_progress: bool = False,
        segments: SegmentsLike | Sequence[SegmentsLike] | None = None,
        words: Literal["prompt", "earlier"] | None = None,
        max_image_tokens: ImageTokens | None = None,
        contrast: Contrast | None = None,
        reasons: Mode | None = None,
        diagnosis: bool = False,
        alternatives: int = 0,
        **kwargs: Any,
    ) -> MLLMAttributionResult:
        r"""
        Args:
            inp (ImageTextInput): the images and the question.
            target (str, Sequence[int] or Tensor, optional): the answer to explain, as text or as
                tokens. Default: None, what the model answers.
            include_prompt (bool): explain the words of the question too, before those of the
                answer. Default: False
            top_predictions (int): how many of the model's most probable tokens to keep for each
                explained one. Default: 5
            gen_args (dict, optional): arguments of ``generate`` where the model answers.
                Default: None, greedy and 64 tokens at most.
            show_progress (bool): show bars over scales, and over tokens for methods that take
                them in turn. Default: False
            segments (tuple[int, int], int, Tensor or Sequence[Tensor], optional): for methods that
                perturb, the parts of the image that are removed together: rows and columns of a
                grid; a number of :func:`~captum_mllm.attr.superpixels`; or, as
                :class:`captum.attr.ImageMaskInput` takes them, a label for each pixel, integers
                (H, W), or a mask (H, W) for each part, which may overlap. A grid or a number is
                for each of several images; else give a list with an entry for each. Every token is
                explained from the same passes, and ``perturbations_per_eval`` of them run at a
                time.
                Default: None, the method is asked for each token, with arguments of its own.
            words (str, optional): the words that are features of the method beside the image,
                those of the question (``"prompt"``), or those of the answer as well, each for the
                tokens after it (``"earlier"``); for methods that perturb ``segments``, and for
                those of gradients, which take the embeddings of the tokens. Default: None, the
                question's where there are segments, unless the method weighs words by itself.
            max_image_tokens (int or "context", optional): tokens of the image at one scale, at
                most. Scales that make more, or more than the model's context has room for, are
                lowered to fit, with a warning; ``"context"`` for this limit alone. Default: None,
                a scale beyond the context is an error
            contrast (str or Mapping[Selection, str], optional): what might have been said instead
                of a word, ``{"dog": "cat"}``, or ``"cat"`` for an answer of one word: the maps and
                weights of that word then tell why it was said and not the other. Of words of
                several tokens the first that differs is in contrast, and the result's ``method``
                names it. Other words are explained as without it. Default: None
            reasons (str, optional): also tell what each token rests on: the image, the question,
                the answer so far, or none of them. ``"exact"`` leaves each of them out, alone and
                together, in a batch of 8 rows (see :func:`~captum_mllm.explain.exact_reasons`);
                ``"estimate"`` reads it from one pass. Default: None
            diagnosis (bool): also read the signals by which :meth:`MLLMAttributionResult.diagnosis`
                tells words that the image does not show, from at most two rows of a batch more
                than the explanation. Default: False
            alternatives (int): also tell of so many of the next most probable tokens at each place
                of the answer why they were not said: maps and weights as of ``contrast``, for
                each token by itself, see :class:`~captum_mllm.explain.Alternatives`. At least one
                more than these are kept of the ``top_predictions``. With the lens and attention
                it takes no further pass, and keeps the states of all scales; methods with passes
                of their own make as many again for each of them. Default: 0
            **kwargs (Any): passed on to the attribution method: ``scales``, ``n_steps``,
                ``n_samples``, ``perturbations_per_eval`` ... With segments or words,
                ``baselines`` is (image, words): what replaces removed parts,
                None, ``"mean"``, ``"blur"``, a number or a tensor as in
                :func:`~captum_mllm.metrics.deletion_auc` (None is black), or a list with one of
                these for each of several images; and of removed words,
                None or ``"mean"`` for the mean of all embeddings, a token such as ``" "``, a
                number, or an embedding (D,). Windows and strides of Occlusion count in segments,
                and in words, such as ``((1, 2, 2), (1,))`` on a grid.

        Returns:
            MLLMAttributionResult: maps of each explained image (T, h, w), the share of each, and
            weights of the earlier tokens (T, P + T): the values of words that are features (0 for
            other tokens; the tokens of a removed word before the explained one share its value),
            else those of the method's ``attribute_text``, also within wrappers. A method without
            either leaves the weights to attention, and where it cannot be read to the states of
            the tokens.
            What each scale of MSEA saw is part of it where MSEA is the method or lies directly
            within ARC or TAM.

        Raises:
            RuntimeError: for a gradient method under ``torch.inference_mode``.
            TypeError: if ``inp`` is not an :class:`ImageTextInput`, or the method takes no segments
                or words.
            ValueError: for an empty answer, a scale that makes more tokens than the model's context
                has, or arguments that clash or that the method refuses.
        """
        check_is_input(inp)
        extras = Extras(reasons, diagnosis, alternatives)
        flags = {"include_prompt": include_prompt, "show_progress": show_progress}
        check_arguments(gen_args, top_predictions, extras, kwargs, **flags)
        mllm: MLLM = self.forward_func
        # The states by which the model says an answer of its own are those of a pass with it.
        with mllm.remember():
            options = generation_options(gen_args)
            images, query = open_query(mllm.backbone, inp)
            answer = given_answer(mllm.backbone, target, options)
            kwargs = fit_to_context(
                self.attribution_method, [query], [answer], options, max_image_tokens, kwargs
            )
            if answer is None:
                (answer,) = answer_prompts(mllm.backbone, [(images, query)], options)
            query = replace(query, answer_ids=answer)
            if include_prompt:
                query = query.including_prompt()
            return explain(
                self.attribution_method,
                inp,
                images,
                query,
                top_predictions,
                show_progress,
                segments,
                words,
                contrast,
                extras,
                **kwargs,
            )

    def attribute_batch(
        self,
        inputs: Sequence[ImageTextInput],
        targets: Sequence[str | Sequence[int] | Tensor | None] | None = None,
        include_prompt: bool = False,
        top_predictions: int = 5,
        gen_args: dict[str, Any] | None = None,
        show_progress: bool = False,
        segments: SegmentsLike | Sequence[SegmentsLike] | None = None,
        words: Literal["prompt", "earlier"] | None = None,
        max_image_tokens: ImageTokens | None = None,
        contrasts: Sequence[Contrast | None] | None = None,
        reasons: Mode | None = None,
        diagnosis: bool = False,
        alternatives: int = 0,
        **kwargs: Any,
    ) -> list[MLLMAttributionResult]:
        r"""
        Several inputs at once, each with a question and an answer of its own.

        The model answers all of them in one batch, and around LogitLens, AttendedLens and raw
        attention makes one pass for all of them at each scale. The results are those of
        :meth:`attribute`, up to rounding; answers that are sampled are other ones, as random
        numbers are drawn in another order. Memory grows with the number of inputs and with the
        longest of them: give as many as fit, of similar size. Methods that make other passes of
        their own, such as those with gradients, still take the inputs in turn.

        Args:
            inputs (Sequence[ImageTextInput]): the images and the questions.
            targets (Sequence, optional): the answer to explain for each of them, None for the
                model's own. Default: None, what the model answers to each.
            include_prompt (bool): as in :meth:`attribute`. Default: False
            top_predictions (int): as in :meth:`attribute`. Default: 5
            gen_args (dict, optional): as in :meth:`attribute`, for all of them. Default: None
            show_progress (bool): as in :meth:`attribute`, for each input. Default: False
            segments (optional): as in :meth:`attribute`, the same for all inputs: masks take
                images of one size. Default: None
            words (str, optional): as in :meth:`attribute`. Default: None
            max_image_tokens (int or "context", optional): as in :meth:`attribute`; scales are
                lowered to fit all inputs. Default: None
            contrasts (Sequence, optional): what might have been said instead in each answer, as
                ``contrast`` in :meth:`attribute`, None for no contrast. Default: None, none
            reasons (str, optional): as in :meth:`attribute`, in turn. Default: None
            diagnosis (bool): as in :meth:`attribute`, in turn. Default: False
            alternatives (int): as in :meth:`attribute`. Default: 0
            **kwargs (Any): passed on to the attribution method.

        Returns:
            list[MLLMAttributionResult]: one for each input, in their order.

        Raises:
            TypeError: if an input is not an :class:`ImageTextInput`.
            ValueError: for no inputs, another number of targets or contrasts, an empty answer,
                images that the model does not take in one batch, or arguments that clash or that
                the method refuses.

        Examples::
            >>> from PIL import Image
            >>> from captum_mllm import MLLM, TAM, ImageTextInput, LogitLens, MLLMAttribution
            >>> from captum_mllm.demo import demo_image
            >>> explainer = MLLMAttribution(TAM(LogitLens(MLLM.from_pretrained("demo/qwen2-vl"))))
            >>> scene = Image.open(demo_image())
            >>> inputs = [ImageTextInput(scene, "Describe the image."), ImageTextInput(scene, "?")]
            >>> results = explainer.attribute_batch(inputs, ["a red circle", "a blue ring"])
            >>> [result.output_words for result in results]
            [['a', 'red', 'circle'], ['a', 'blue', 'ring']]
        """
        if "contrast" in kwargs:
            raise TypeError(
                "attribute_batch() takes contrasts, a list with a contrast for each input; "
                "contrast is of attribute(), for one"
            )
        if not isinstance(inputs, Sequence) or isinstance(inputs, (str, bytes)):
            raise TypeError(
                f"got inputs of type {type(inputs).__name__}, expected a list of ImageTextInput; "
                "attribute() takes one of them"
            )
        for inp in inputs:
            check_is_input(inp)
        extras = Extras(reasons, diagnosis, alternatives)
        flags = {"include_prompt": include_prompt, "show_progress": show_progress}
        check_arguments(gen_args, top_predictions, extras, kwargs, **flags)
        return attribute_batch(
            self.attribution_method,
            inputs,
            targets,
            include_prompt,
            top_predictions,
            generation_options(gen_args),
            max_image_tokens,
            contrasts,
            kwargs,
            show_progress=show_progress,
            segments=segments,
            words=words,
            extras=extras,
        )

    def what_if(self, result: MLLMAttributionResult, remove: Selection, **options: Any) -> WhatIf:
        r"""
        Hide the region that explains a word, and see what the model then says.
        :meth:`MLLMAttributionResult.keep_what_if` keeps it for the page and the file.

        Args:
            result (MLLMAttributionResult): an explained answer of this model.
            remove (optional): the word or the phrase, as in :meth:`MLLMAttributionResult.map`.
            **options (Any): see :func:`~captum_mllm.explain.what_if`: ``by``, ``inp``, ``margin``,
                ``answer``, ``seed`` and, where several images are explained, ``image``.

        Returns:
            WhatIf: the probabilities of all words before and after, also with a region of the same
            shape hidden elsewhere.

        Raises:
            ValueError: see :func:`~captum_mllm.explain.what_if`.

        Examples::
            >>> from PIL import Image
            >>> from captum_mllm import ARC, MLLM, MSEA, AttendedLens, ImageTextInput
            >>> from captum_mllm import MLLMAttribution
            >>> from captum_mllm.demo import demo_image
            >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
            >>> explainer = MLLMAttribution(ARC(MSEA(AttendedLens(mllm))))
            >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
            >>> result = explainer.attribute(inp)
            >>> found = explainer.what_if(result, remove="star", answer=False)
            >>> found.changed, found.changed_elsewhere
            (True, False)
        """
        return what_if(self.forward_func, result, remove, **options)

    def stream(
        self,
        inp: ImageTextInput,
        gen_args: dict[str, Any] | None = None,
        top_predictions: int = 5,
        reasons: Mode | None = None,
        diagnosis: bool = False,
        alternatives: int = 0,
        **kwargs: Any,
    ) -> AnswerStream:
        r"""
        Explain each word of the model's own answer as soon as it is said.

        The states by which the model says a word are those that explain it, so that this takes no
        further pass. A word comes once what follows it shows that it has ended. LogitLens, and TAM
        and ARC around it, can be streamed, at scale 1: what MSEA sees at other scales would need
        passes of its own, so that it streams with ``scales=(1.0,)`` alone.

        Args:
            inp (ImageTextInput): the image and the question.
            gen_args (dict, optional): arguments of ``generate``; greedy or sampled, without beams.
                Default: None, greedy and 64 tokens at most.
            top_predictions (int): as in :meth:`attribute`, for the ``result``. Default: 5
            reasons (str, optional): as in :meth:`attribute`, for the ``result``, in passes of their
                own after the answer. Default: None
            diagnosis (bool): as in :meth:`attribute`, for the ``result``, in passes of its own
                after the answer. Default: False
            alternatives (int): as in :meth:`attribute`, for the ``result``. Default: 0
            **kwargs (Any): passed on to the attribution method.

        Returns:
            AnswerStream: an iterator over :class:`~captum_mllm.AnswerWord`, with the
            ``result`` of the whole answer once it has ended.

        Raises:
            TypeError: if ``inp`` is not an :class:`ImageTextInput`, and for arguments of
                :meth:`attribute` that need the whole answer.
            ValueError: for a method or a scale that cannot be streamed; while the words come, for
                an empty answer, and for an answer that is not made token by token.

        Examples::
            >>> from PIL import Image
            >>> from captum_mllm import ARC, MLLM, ImageTextInput, LogitLens, MLLMAttribution
            >>> from captum_mllm.demo import demo_image
            >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
            >>> explainer = MLLMAttribution(ARC(LogitLens(mllm)))
            >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
            >>> with explainer.stream(inp, gen_args={"max_new_tokens": 3}) as stream:
            ...     shapes = [step.map.shape for step in stream]
            >>> shapes == [(224, 224)] * len(stream.result.output_words)
            True
        """
        check_is_input(inp)
        extras = Extras(reasons, diagnosis, alternatives)
        # A target is refused with advice later on.
        check_arguments(gen_args, top_predictions, extras, set(kwargs) - {"target"})
        of_result = {"top_predictions": top_predictions, "extras": extras}
        options = generation_options(gen_args)
        return stream_answer(self.attribution_method, inp, options, kwargs, of_result)

    @classmethod
    def get_name(cls) -> str:
        return "MLLM Attribution"

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for MLLMAttribution")
