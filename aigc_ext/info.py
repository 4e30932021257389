"""``python -m aigc_ext.info`` prints what ``aigc_ext.info()`` returns."""

from aigc_ext._info import main

if __name__ == "__main__":
    main()
