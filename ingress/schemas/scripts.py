"""What the args of extensions that are not here tell: as much as shows whether they ask for anything."""

from ingress.schemas.sdapi import LenientModel, Text


class AnimateDiffUnit(LenientModel):
    enable: bool = False

    @property
    def asks(self) -> bool:
        return self.enable


class ControlNetUnit(LenientModel):
    """`enabled` left out was true in older versions of the extension, and is false in newer ones."""

    enabled: bool | None = None
    module: Text | None = None
    model: Text | None = None

    @property
    def asks(self) -> bool:
        """By what it names; one that is switched on and names nothing asks too."""
        named = [name for name in (self.module, self.model) if name is not None]
        used = any(name.casefold() not in ("", "none") for name in named)
        return self.enabled is not False and (used or (self.enabled is True and not named))


class ADetailerUnit(LenientModel):
    ad_model: Text = "None"
    ad_tab_enable: bool = True

    @property
    def asks(self) -> bool:
        return self.ad_tab_enable and self.ad_model.casefold() not in ("", "none")


Unit = ADetailerUnit | AnimateDiffUnit | ControlNetUnit
